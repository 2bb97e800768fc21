"""BERT as transformers has it, every kind of it, on weights that hide nothing. Never imports our code."""

import numpy as np
import reference
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

# Distinct primes where the architecture allows; 2 segments, for a pair has two.
SIZES = {
    "vocab_size": 97,
    "max_position_embeddings": 53,
    "hidden_size": 39,
    "num_attention_heads": 3,
    "num_hidden_layers": 5,
    "intermediate_size": 61,
    "type_vocab_size": 2,
}
KINDS = {
    "MaskedLM": BertForMaskedLM,
    "PreTraining": BertForPreTraining,
    "Model": BertModel,
    "NextSentencePrediction": BertForNextSentencePrediction,
    "SequenceClassification": BertForSequenceClassification,
    "TokenClassification": BertForTokenClassification,
}
LABELS = {"SequenceClassification": 3, "TokenClassification": 5}


def scrambled(kind: str = "MaskedLM", *, std: float = 0.25, seed: int = 0, body: dict | None = None, **changes):
    """Every parameter drawn anew, by numpy's frozen generator, in the order of the names; norms' weights around 1."""
    labels = {"num_labels": LABELS[kind]} if kind in LABELS else {}
    model = KINDS[kind](BertConfig(**{**SIZES, **labels, **changes}), **(body or {})).double().eval()
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * std)
            parameter.copy_(values + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
    return model


LENGTHS = (29, 1, 13, 5)


def batch(side: str = "right", lengths=LENGTHS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of unequal length as one batch, the second half of each in the second segment: ids, segments, keep. What
    stands at padding is no token one would choose."""
    columns = max(lengths)
    ids, segments = reference.ids(len(lengths), columns, seed=7), torch.ones(len(lengths), columns, dtype=torch.long)
    keep = torch.zeros(len(lengths), columns, dtype=torch.bool)
    for i, length in enumerate(lengths):
        place = slice(columns - length, None) if side == "left" else slice(0, length)
        keep[i, place] = True
        segments[i, place] = (torch.arange(length) >= (length + 1) // 2).long()
    return ids, segments, keep


def answers(model, ids, segments, keep=None) -> dict[str, torch.Tensor]:
    """All it says: `states` of tokens, `pooled` where there is a pooler, `output` of its head, `next` sentence or not.

    Its published positions are columns, so where rows are padded it is told each token's place among the real ones.
    """
    said = {"token_type_ids": segments}
    if keep is not None:
        said |= {"attention_mask": keep.long(), "position_ids": (keep.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        body, head = getattr(model, "bert", model)(ids, **said), model(ids, **said)
    found = {"states": body.last_hidden_state, "pooled": body.pooler_output}
    if isinstance(model, BertForPreTraining):
        found |= {"output": head.prediction_logits, "next": head.seq_relationship_logits}
    elif isinstance(model, BertForNextSentencePrediction):
        found["next"] = head.logits
    else:
        found["output"] = getattr(head, "logits", None)
    if keep is not None and "left" in _sides(keep) and found["pooled"] is not None:
        raise ValueError("its pooler reads the first column: pool rows alone, or padded on the right")
    return {name: value for name, value in found.items() if value is not None}


def _sides(keep):
    return {"left" for row in keep if row.any() and not row[0]}
