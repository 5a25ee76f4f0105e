"""What the methods off the grid compile, in parts that go side by side."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from csunmix._ahead import Step
from csunmix._kernels.frank_wolfe import frank_wolfe
from csunmix._kernels.hops import wander
from csunmix._kernels.importance import add_density, log_level, scatter
from csunmix._kernels.labels import describe, settle
from csunmix._kernels.model import Model
from csunmix._kernels.modes import Modes, approximate, judge
from csunmix._kernels.moments import fit_moments
from csunmix._kernels.refine import EXPLORE, FEW
from csunmix._kernels.refine import refine as refine_views
from csunmix._kernels.scene import least_share
from csunmix._kernels.search import QUICK, THOROUGH, explore, search
from csunmix._kernels.smc import sample
from csunmix._validation import FloatArray
from csunmix.continuous.refine import rules
from csunmix.continuous.sampling import SCORED
from csunmix.continuous.window import Setting, Window
from csunmix.presets import csist_100k


class _Example(NamedTuple):
    """An image of two targets."""

    setting: Setting
    image: FloatArray
    targets: FloatArray  # (2, 3), rows y, x, flux

    @property
    def window(self) -> Window:
        """What is fitted."""
        return cast(Window, self.setting.window(self.image))


def _example() -> _Example:
    setup = csist_100k()
    setting = Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0)
    targets = np.array([[4.7, 5.2, 230.0], [5.3, 4.8, 240.0]])
    y, x = np.mgrid[: setup.shape[0], : setup.shape[1]]
    light = [flux * setup.psf.kernel(y - at_y, x - at_x) for at_y, at_x, flux in targets]
    return _Example(setting, np.rint(sum(light)), targets)


def _posterior(example: _Example) -> tuple[Model, Modes]:
    """That of the example, and what approximates it."""
    window = example.window
    model = window.model(example.setting.optics, len(example.targets), weighs_cell=False)
    theta = (example.targets - np.array([*window.origin, 0.0])).reshape(1, -1)
    factor = 0.01 * np.eye(theta.size)[None]
    modes = Modes(theta, theta, factor, np.linalg.inv(factor))
    return model._replace(pixels=window.smooth), modes


def compile_refinement() -> None:
    """Compile what refines the targets of a grid."""
    setting, image, targets = _example()
    views, rows = setting.views(image[None]), np.array([0, len(targets)], np.int64)
    given = rules(setting), views, targets, rows, FEW, SCORED, setting.rooms[0], EXPLORE
    kernel: Any = refine_views
    kernel.compile_for(*given)


def compile_exploration() -> None:
    """Compile how that looks for optima."""
    model, modes = _posterior(_example())
    explore(model, modes.theta, QUICK, 1, 0.0, False)


def compile_search() -> None:
    """Compile how the grid-free methods look for scenes: the joint fit, and chains from optima."""
    example = _example()
    model, modes = _posterior(example)
    search(model, 1, 1, np.inf, THOROUGH, 0)
    describe(example.targets[None], np.ones(1), 0.1)
    wander(model, modes, np.zeros(1, np.int64), 1, 1, 0.0, 0)


def compile_draws() -> None:
    """Compile how they approximate a posterior, draw from that, and sum up the draws."""
    example = _example()
    (model, modes), one = _posterior(example), np.ones(1)
    count, theta = model.n_targets, modes.theta
    example.window.cell_density(count)
    approximate(model, theta, np.zeros(1), np.empty(0))
    judge(model, theta[0], 0.0, np.ones(2), 0.0)
    unit = log_level(modes.inverse[0], 1.0)
    add_density(theta, modes.inverse, one, unit, count, theta, np.zeros(1))
    settle(example.targets[None], one, example.targets[:, :2].copy())
    least_share(model.optics, model.box.area, *model.pixels.low.shape)
    scatter(model, modes, np.zeros(1, np.int64), theta.copy())


def compile_smc() -> None:
    """Compile sequential Monte Carlo."""
    model, _ = _posterior(_example())
    sample(model, 2, 8, 0.5, 1, 0)


REFINEMENT = (
    Step(refine_views, (__name__, "compile_refinement")),
    Step(explore, (__name__, "compile_exploration")),
)

_SEARCH, _DRAWS = (__name__, "compile_search"), (__name__, "compile_draws")
# Each has a kernel that a run calls for sure, whatever the image.
ESTIMATION = Step(search, _SEARCH), Step(scatter, _DRAWS)
"""Of `ContinuousUnmixer` and `PosteriorUnmixer`."""

APPROXIMATION = Step(search, _SEARCH), Step(judge, _DRAWS)
"""Of normal approximations alone."""

SMC = Step(search, _SEARCH), Step(sample, (__name__, "compile_smc"))
"""Of ``sampler="smc"``."""

MOMENTS = Step(fit_moments)
FRANK_WOLFE = Step(frank_wolfe)
