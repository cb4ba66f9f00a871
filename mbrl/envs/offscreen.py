"""Off-screen MuJoCo rendering: the choice of an OpenGL library, and a renderer that is fast in software.

Knows nothing of tasks. MuJoCo is imported where it is used, for that is when it reads MUJOCO_GL.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np

from ivideogpt.errors import UserError

BACKENDS = {"Darwin": ("cgl",), "Windows": ("glfw",)}.get(platform.system(), ("egl", "osmesa"))


@functools.cache
def select_backend() -> str:
    """Find the OpenGL library that works here and leave its name in MUJOCO_GL; call it before importing mujoco.

    A MUJOCO_GL that the user has set is tried alone.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    candidates = (asked,) if asked else BACKENDS
    for backend in candidates:
        if _makes_a_context(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise UserError(
        f"off-screen rendering does not work here (tried {' and '.join(candidates)}"
        f"{', as MUJOCO_GL says' if asked else ''}); "
        "on Debian or Ubuntu: apt-get install libegl1 libgl1 libosmesa6"
    )


def _makes_a_context(backend: str) -> bool:
    """Test a backend in its own process: a failed attempt leaves PyOpenGL bound to the wrong library."""
    probe = "import importlib, sys; importlib.import_module('mujoco.' + sys.argv[1]).GLContext(8, 8).make_current()"
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)
    return subprocess.run([sys.executable, "-c", probe, backend], env=environment, capture_output=True).returncode == 0


class OffscreenRenderer:
    """Square pictures of one model from one camera. Make it in the process that uses it, and close it.

    Rendered at twice the size and averaged, without multisampling, shadows and reflections: smooth, and nine times
    faster in software than MuJoCo's defaults.
    """

    def __init__(self, model: Any, size: int, camera: str) -> None:
        backend = select_backend()
        import mujoco

        self._mujoco, self._model = mujoco, model
        self._camera = _fixed_camera(model, camera)
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

        # llvmpipe's own threads gain nothing on pictures this small, and several workers would fight over the cores.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        side = 2 * size
        # Not mujoco.Renderer: it uses the library that MUJOCO_GL named when mujoco was imported, perhaps by others.
        self._gl_context = importlib.import_module(f"mujoco.{backend}").GLContext(side, side)
        self._gl_context.make_current()
        model.vis.quality.offsamples = 0  # read when the MjrContext is made, like the size of its buffer
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._viewport = mujoco.MjrRect(0, 0, side, side)
        self._pixels = np.empty((side, side, 3), np.uint8)
        atexit.register(self.close)  # before the library's own exit hook, after which freeing would fail

    def render(self, data: Any) -> np.ndarray:
        """Render (size, size, 3) uint8, a new array; rows from the bottom up, as OpenGL has them."""
        mujoco = self._mujoco
        self._gl_context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturbation, self._camera, everything, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
        return halve(self._pixels)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._gl_context.make_current()
        self._context.free()
        self._gl_context.free()


def _fixed_camera(model: Any, name: str) -> Any:
    import mujoco

    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if camera.fixedcamid < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam))
        raise UserError(f"no camera named {name!r}; there are {known}")
    return camera


def halve(image: np.ndarray) -> np.ndarray:
    """Halve an image (2H, 2W, 3) uint8 to rounded means of 2x2 pixels. Slices are eight times faster than mean()."""
    wide = image.astype(np.uint16)
    rows = wide[0::2] + wide[1::2]
    total = rows[:, 0::2] + rows[:, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
