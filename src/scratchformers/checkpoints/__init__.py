"""Published files and our tensors: read safely, translated both ways, saved again."""
