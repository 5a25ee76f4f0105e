"""Compiled functions, and those that go as they are into others which call them.

This leans on what numba does not promise to keep; it was tried with numba 0.60 to 0.68.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from llvmlite.binding import Linkage
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering

_REFUSE = ctypes.cast(ctypes.pythonapi.PyObject_Call, ctypes.c_void_p).value
"""Called with a function's closure, it raises that this is not callable."""


class _Part(JITCodeLibrary):
    """Code to be optimised, and made machine code, where it is linked to."""

    def finalize(self) -> None:
        """Link to what the code calls, and no more."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(library, "_reload_init"):  # which numba 0.60 has not
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


class _Whole(JITCodeLibrary):
    """Code with its parts, which nothing else calls.

    LLVM then passes them only what they use, and not every array of a named tuple.
    """

    def _optimize_final_module(self) -> None:
        for each in self._final_module.functions:
            # Those of numba's runtime are told by their names, and kept as they are.
            if each.linkage == Linkage.linkonce_odr and not each.name.startswith("NRT_"):
                each.linkage = Linkage.internal
        super()._optimize_final_module()


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):
    """As numba's, up to where it makes machine code."""

    _name = "csunmix_part"

    def run_pass(self, state: Any) -> bool:
        """Lower a function, and let other functions call it."""
        context, name = state.targetctx, state.func_id.func_name
        state.library = _Part(context.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = True
        super().run_pass(state)
        made = state["cr"]
        module, keep = made.fndesc.lookup_module(), (state.library,)
        stub = make_function(module, name, "Called by kernels.", _REFUSE, made.env, keep)
        context.insert_user_function(stub, made.fndesc, [state.library])
        state["cr"] = made._replace(cfunc=stub)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerKernel(NativeLowering):
    """As numba's, for code that is called from outside at one place alone."""

    _name = "csunmix_kernel"

    def run_pass(self, state: Any) -> bool:
        """Lower a function and make machine code of it and its parts."""
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


class _Compiler(CompilerBase):
    """numba's compiler with a lowering of our own."""

    lowering: type[NativeLowering]

    def define_pipelines(self) -> list[Any]:
        """The only pipeline."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        ours = {NativeLowering: self.lowering}
        passes.passes = [(ours.get(each, each), about) for each, about in passes.passes]
        passes.finalize()
        return [passes]


class _PartCompiler(_Compiler):
    """Compiles a function to what goes into those that call it."""

    lowering = _LowerPart


class _KernelCompiler(_Compiler):
    """Compiles a function for Python to call."""

    lowering = _LowerKernel


class Part(CPUDispatcher):
    """A function for compiled functions to call; where Python does, it is compiled by itself."""

    def __init__(
        self,
        py_func: Any,
        locals: dict[str, Any] | None = None,  # as numba names it, which unpickles by position
        targetoptions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(py_func, locals or {}, targetoptions or {}, pipeline_class=_PartCompiler)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the function that is compiled by itself."""
        return self._alone(*args, **named)

    @cached_property
    def _alone(self) -> Any:
        return compile_kernel(self.py_func, self.targetoptions)


class Kernel(CPUDispatcher):
    """A function for Python to call."""

    def __init__(
        self,
        py_func: Any,
        locals: dict[str, Any] | None = None,
        targetoptions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(py_func, locals or {}, targetoptions or {}, pipeline_class=_KernelCompiler)

    def compile(self, signature: Any) -> Any:
        """Compile it without looking for garbage meanwhile: nearly all that is made then lasts."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super().compile(signature)
        finally:
            if collects:
                gc.enable()


def compile_kernel(function: Any, options: dict[str, Any]) -> Any:
    """Compile a function and what it calls, kept on disk until a file of this folder changes.

    numba looks at the function's own file alone, and its parts may be in others.
    """
    made: Any = Kernel(function, targetoptions=options)
    made.enable_caching()
    index = made._cache._cache_file
    index._source_stamp = (index._source_stamp, _digest())
    return made


@cache
def _digest() -> str:
    """What stands in the files of this folder, in few letters."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.blake2b(b"".join(each.read_bytes() for each in files)).hexdigest()
