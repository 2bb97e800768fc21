"""What translations are worth beside others: BLEU and chrF as sacrebleu counts them (Post 2018), if it is installed."""

import importlib.util
from collections.abc import Sequence

MISSING = "sacrebleu is not installed, so there is no BLEU: pip install sacrebleu."


def can_score() -> bool:
    return importlib.util.find_spec("sacrebleu") is not None


def judge(name: str, answers: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """`BLEU` or `CHRF` of all answers together, from 0 to 100, and the signature that says how it was counted."""
    from sacrebleu import metrics

    metric = getattr(metrics, name)(references=[references])
    return metric.corpus_score(answers, None).score, str(metric.get_signature())


def exact(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share that is the reference, letter for letter; space around either does not count."""
    return sum(a.strip() == b.strip() for a, b in zip(answers, references)) / len(answers)
