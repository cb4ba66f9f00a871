"""Factors of variation of a MuJoCo scene: light, colours, camera, table. Nothing that moves depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ivideogpt.errors import UserError

FACTORS = ("light", "colours", "camera", "table")
SURROUNDINGS = ("basic_floor", "table_wood", "table_col", "wall_metal")  # Meta-World's materials that are no objects
NO_OBJECTS = ("world", "tablelink", "RetainingWall", "base", "mocap")  # Meta-World's bodies that are none
DEFAULT_COLOUR = (0.5, 0.5, 0.5, 1.0)  # parts of this colour are drawn in that of their material
# arrays of a model
CHANGED = ("mat_rgba", "geom_rgba", "light_diffuse", "light_pos", "cam_pos", "cam_quat", "cam_fovy")


def check_factors(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in FACTORS]:
        raise UserError(f"no factor of variation named {unknown[0]!r}; there are {', '.join(FACTORS)}")


class Looks:
    """Changes how a model is drawn, from the way it was when this was made.

    light: strength of each lamp by up to three times, its place by decimetres, and all light by up to 60 %. colours:
    those of the objects, by exchanging red, green and blue and by up to half of each. camera: its place by 5 cm, its
    direction by 3 degrees, its angle of view by 5 %. table: colours of table and floor by up to a half.
    """

    def __init__(self, model: Any, factors: Sequence[str]) -> None:
        """UserError for a factor that there is not."""
        check_factors(factors)
        self._model, self._factors = model, factors
        self._original = {name: getattr(model, name).copy() for name in CHANGED}
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in ("ambient", "diffuse")}
        names = [model.material(number).name for number in range(model.nmat)]
        self._is_table = np.array([name in ("basic_floor", "table_wood") for name in names], bool)
        self._is_object = np.array([name not in SURROUNDINGS for name in names], bool)
        roots = [model.body(model.body_rootid[body]).name for body in model.geom_bodyid]
        is_coloured = (model.geom_matid < 0) | (model.geom_rgba != DEFAULT_COLOUR).any(axis=1)
        self._is_coloured_part = np.array([root not in NO_OBJECTS for root in roots], bool) & is_coloured

    def vary(self, seed: int) -> None:
        """Give the model the looks of a seed. A factor looks the same whatever else varies."""
        for name, values in self._original.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values
        for factor in self._factors:
            getattr(self, f"_vary_{factor}")(np.random.default_rng([seed, FACTORS.index(factor)]))

    def _vary_light(self, rng: np.random.Generator) -> None:
        model = self._model
        model.light_diffuse[:] *= np.exp(rng.uniform(-1.1, 1.1, (model.nlight, 1)))
        model.light_pos[:] += rng.normal(0, 0.3, model.light_pos.shape)
        for values in (model.vis.headlight.ambient, model.vis.headlight.diffuse):
            values[:] = np.minimum(values * rng.uniform(0.4, 1.6), 1)

    def _vary_colours(self, rng: np.random.Generator) -> None:
        order = rng.permutation(3)
        _tint(self._model.mat_rgba, self._is_object, order, rng)
        _tint(self._model.geom_rgba, self._is_coloured_part, order, rng)

    def _vary_table(self, rng: np.random.Generator) -> None:
        _tint(self._model.mat_rgba, self._is_table, np.arange(3), rng)

    def _vary_camera(self, rng: np.random.Generator) -> None:
        import mujoco

        model = self._model
        shift, turn, zoom = rng.normal(0, 0.05, 3), rng.normal(0, np.radians(3), 3), rng.uniform(0.95, 1.05)
        rotation = np.zeros(4)
        mujoco.mju_axisAngle2Quat(rotation, turn / np.linalg.norm(turn), float(np.linalg.norm(turn)))
        model.cam_pos[:] += shift
        model.cam_fovy[:] *= zoom
        for camera in range(model.ncam):
            mujoco.mju_mulQuat(model.cam_quat[camera], model.cam_quat[camera].copy(), rotation)


def _tint(colours: np.ndarray, which: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> None:
    """Change some colours (n, 4) in place: red, green and blue in another order, each by up to a half."""
    tinted = np.clip(colours[:, order] * rng.uniform(0.5, 1.5, (len(colours), 3)), 0, 1)
    colours[which, :3] = tinted[which]
