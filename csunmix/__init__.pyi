from . import datasets as datasets
from . import io as io
from . import metrics as metrics
from . import presets as presets
from . import targets as targets
from .dictionary import Dictionary as Dictionary
from .dictionary import dot_test as dot_test
from .grid import SubpixelGrid as SubpixelGrid
from .prior import Prior as Prior
from .psf import PSF as PSF
from .psf import AiryPSF as AiryPSF
from .psf import GaussianPSF as GaussianPSF
from .psf import SampledPSF as SampledPSF
from .psf import SeparablePSF as SeparablePSF
from .sensor import Sensor as Sensor
from .simulate import Simulation as Simulation
from .simulate import render as render
from .simulate import simulate as simulate

__version__: str
