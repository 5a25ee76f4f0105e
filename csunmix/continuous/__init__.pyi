from .bound import CramerRao as CramerRao
from .bound import cramer_rao as cramer_rao
from .count import CountTest as CountTest
from .count import count_test as count_test
from .frank_wolfe import FrankWolfeResult as FrankWolfeResult
from .frank_wolfe import SlidingFrankWolfe as SlidingFrankWolfe
from .posterior import PosteriorUnmixer as PosteriorUnmixer
from .unmixer import ContinuousUnmixer as ContinuousUnmixer
