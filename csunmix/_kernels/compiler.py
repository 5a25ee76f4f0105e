"""Functions that go as they are into the compiled functions which call them."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import numba
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering

_REFUSE = ctypes.cast(ctypes.pythonapi.PyObject_Call, ctypes.c_void_p).value
"""Called with a function's closure, it raises that this is not callable."""


class _Code(JITCodeLibrary):
    """Code to be optimised, and made machine code, where it is linked to."""

    def finalize(self) -> None:
        """Link to what the code calls, and no more."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """As numba's, up to where it makes machine code."""

    _name = "csunmix_part"

    def run_pass(self, state: Any) -> bool:
        """Lower a function, and let other functions call it."""
        context, name = state.targetctx, state.func_id.func_name
        state.library = _Code(context.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = True
        super().run_pass(state)
        made = state["cr"]
        module, keep = made.fndesc.lookup_module(), (state.library,)
        stub = make_function(module, name, "Called by kernels.", _REFUSE, made.env, keep)
        context.insert_user_function(stub, made.fndesc, [state.library])
        state["cr"] = made._replace(cfunc=stub)
        return True


class _Compiler(CompilerBase):
    """Compiles a function to what goes into those that call it."""

    def define_pipelines(self) -> list[Any]:
        """The only pipeline."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        lowering = {NativeLowering: _Lowering}
        passes.passes = [(lowering.get(each, each), about) for each, about in passes.passes]
        passes.finalize()
        return [passes]


class Part(CPUDispatcher):
    """A function for compiled functions to call; where Python does, it is compiled by itself."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options, pipeline_class=_Compiler)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the function that is compiled by itself."""
        return self._alone(*args, **named)

    @cached_property
    def _alone(self) -> Any:
        return numba.jit(cache=True, **self.targetoptions)(self.py_func)
