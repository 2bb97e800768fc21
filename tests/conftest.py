import sys

import pytest
import torch

sys.path.insert(0, __file__.rpartition("conftest.py")[0])
sys.path.append(__file__.rpartition("tests")[0] + "benchmarks")
import reference  # before anything imports transformers
import survival

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A GPT-2 of transformers in float64, scrambled, and the folder it was saved to."""
    model = reference.scrambled()
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def model(published):
    """Ours, loaded from that folder, in float64."""
    import scratchformers as sf

    return sf.load(published[1], dtype=torch.float64)


@pytest.fixture(scope="session")
def berts(tmp_path_factory):
    """Of each kind of BERT that transformers has here, one in float64, scrambled, and the folder it was saved to."""
    import bert_reference

    made = {}
    for kind in bert_reference.KINDS:
        folder = tmp_path_factory.mktemp(kind)
        theirs = bert_reference.scrambled(kind)
        theirs.save_pretrained(folder)
        made[kind] = theirs, folder
    return made


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """What forks processes that run the program, for those who kill them or let them train together."""
    made = survival.Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Of the data that the nursery's runs read, by kind."""
    return survival.data(tmp_path_factory.mktemp("data"))
