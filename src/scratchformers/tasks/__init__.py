"""What people ask a model for: text or a picture in, answers out. A list in gives a list out."""

from scratchformers.tasks.pairs import DualEncoder as DualEncoder
from scratchformers.tasks.pairs import Match as Match
from scratchformers.tasks.pairs import PictureIndex as PictureIndex
from scratchformers.tasks.pairs import ZeroShotClassifier as ZeroShotClassifier
from scratchformers.tasks.pairs import check_labels as check_labels
from scratchformers.tasks.pairs import load_encoder as load_encoder
from scratchformers.tasks.pairs import read_templates as read_templates
from scratchformers.tasks.pictures import ImageClassifier as ImageClassifier
from scratchformers.tasks.pictures import Picture as Picture
from scratchformers.tasks.pictures import Reconstruction as Reconstruction
from scratchformers.tasks.pictures import Reconstructor as Reconstructor
from scratchformers.tasks.pictures import load_classifier as load_classifier
from scratchformers.tasks.pictures import read_ahead as read_ahead
from scratchformers.tasks.texts import Completer as Completer
from scratchformers.tasks.texts import Completion as Completion
from scratchformers.tasks.texts import Fill as Fill
from scratchformers.tasks.texts import Label as Label
from scratchformers.tasks.texts import MaskFiller as MaskFiller
from scratchformers.tasks.texts import Pooling as Pooling
from scratchformers.tasks.texts import Request as Request
from scratchformers.tasks.texts import SentenceEncoder as SentenceEncoder
from scratchformers.tasks.texts import TextClassifier as TextClassifier
from scratchformers.tasks.texts import WordLabel as WordLabel
from scratchformers.tasks.texts import Writing as Writing
from scratchformers.tasks.texts import read_pooling as read_pooling
