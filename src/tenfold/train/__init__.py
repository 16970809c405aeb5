"""Training that knows of factors. Needs `pip install tenfold[train]`."""

from tenfold._verify import Epoch
from tenfold.train._admm import ADMM
from tenfold.train._augment import Augment
from tenfold.train._finetune import Finetuned, finetune
from tenfold.train._hooks import Hooks
from tenfold.train._hoyer_pull import HoyerPull
from tenfold.train._progressive import Progressed, Round, progressive
from tenfold.train._recipe import Recipe
from tenfold.train._soft_filter_pruning import SoftFilterPruning
from tenfold.train._svd_training import SVDTraining

__all__ = [
    "ADMM",
    "Augment",
    "Epoch",
    "Finetuned",
    "Hooks",
    "HoyerPull",
    "Progressed",
    "Recipe",
    "Round",
    "SVDTraining",
    "SoftFilterPruning",
    "finetune",
    "progressive",
]
