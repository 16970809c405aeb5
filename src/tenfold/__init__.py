"""Make trained PyTorch networks several times smaller and faster, and keep their accuracy."""

from tenfold import methods
from tenfold._apply import apply
from tenfold._budget import Budget
from tenfold._calibrate import calibrate
from tenfold._candidates import Options, Target, options, plan
from tenfold._compress import Result, compress
from tenfold._cost import Cost, measure
from tenfold._errors import TenfoldError, TenfoldWarning
from tenfold._export import Exported, export
from tenfold._factored import Factored
from tenfold._joint_rate import JointRate
from tenfold._plan import Plan, Step
from tenfold._rank_rules import EVBMF, Energy, Greedy, MinMax, Ranks
from tenfold._recover import recover, reestimate_norms
from tenfold._resume import resumable
from tenfold._statistics import LayerStatistics, Statistics
from tenfold._store import load, save
from tenfold._stream import apply_to, with_weights
from tenfold._times import Profile
from tenfold._verify import Report, verify
from tenfold._version import __version__
from tenfold._workers import workers

__all__ = [
    "EVBMF",
    "Budget",
    "Cost",
    "Energy",
    "Exported",
    "Factored",
    "Greedy",
    "JointRate",
    "LayerStatistics",
    "MinMax",
    "Options",
    "Plan",
    "Profile",
    "Ranks",
    "Report",
    "Result",
    "Statistics",
    "Step",
    "Target",
    "TenfoldError",
    "TenfoldWarning",
    "__version__",
    "apply",
    "apply_to",
    "calibrate",
    "compress",
    "export",
    "load",
    "measure",
    "methods",
    "options",
    "plan",
    "recover",
    "reestimate_norms",
    "resumable",
    "save",
    "verify",
    "with_weights",
    "workers",
]
