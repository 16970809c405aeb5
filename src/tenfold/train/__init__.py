"""Training that knows of factors. Needs `pip install tenfold[train]`."""

from tenfold.train._augment import Augment
from tenfold.train._finetune import Epoch, Finetuned, finetune
from tenfold.train._progressive import Progressed, Round, progressive
from tenfold.train._recipe import Recipe

__all__ = ["Augment", "Epoch", "Finetuned", "Progressed", "Recipe", "Round", "finetune", "progressive"]
