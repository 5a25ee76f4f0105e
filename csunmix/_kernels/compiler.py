"""Compiled functions, and those that go as they are into others which call them.

This leans on what numba does not promise to keep; it was tried with numba 0.60 to 0.68.
"""

from __future__ import annotations

import ctypes
import hashlib
import operator
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba import typeof
from numba._dynfunc import make_function
from numba.core import config, ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.ir_utils import find_const, guard
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering
from numba.core.types import FunctionType, unliteral
from numba.core.typing.templates import Signature
from numba.core.untyped_passes import ReconstructSSA

from csunmix._ahead import no_collection
from csunmix._kernels.shortcuts import shortcuts

_IDLE = {"inline_closure_likes", "inline_overloads", "dead_branch_prune", "nopython_rewrites"}
"""Passes for closures, branches on None, and sums of arrays, those that take time.

Kernels have none of these, but for sums that need not be fast.
"""

_REFUSE = ctypes.cast(ctypes.pythonapi.PyObject_Call, ctypes.c_void_p).value
"""Called with a function's closure, it raises that this is not callable."""


class _Part(JITCodeLibrary):
    """Code to be linked, optimised, and made machine code, where a kernel calls it."""

    def finalize(self) -> None:
        """Nothing."""
        self._raise_if_finalized()
        self._finalized = True


class _Glue(_Part):
    """The same of code that runs seldom."""

    def _optimize_functions(self, module: Any) -> None:
        """Optimise it by itself alone, and leave it where it is.

        In those that call it, it would be optimised with each.
        """
        super()._optimize_functions(module)
        own = [each for each in module.functions if not each.is_declaration]
        if _marks_functions():
            for each in own:
                each.add_function_attribute("noinline")
                each.add_function_attribute("optnone")


class _Whole(JITCodeLibrary):
    """Code with its parts, which is called from outside alone.

    LLVM then passes them only what they use, and not every array of a named tuple. It unrolls no
    loops: most are short, none the faster for it, and a tenth of the time to compile goes there.
    """

    unrolled = False

    def finalize(self) -> None:
        """Link to all that the code calls, and to what that does, and make machine code of it."""
        found: dict[Any, None] = {}
        for library in self._linking_libraries:
            _find(library, found)
        # Who calls comes first: what nobody has called yet is not taken in.
        self._linking_libraries = list(reversed(found))
        super().finalize()

    def _verify_declare_only_symbols(self) -> None:
        super()._verify_declare_only_symbols()
        for each in self._final_module.functions:
            if each.is_declaration and each.name.startswith("_ZN"):  # a call would go to address 0
                raise AssertionError(f"{each.name} is called and was not linked to")

    def _optimize_final_module(self) -> None:
        for each in self._final_module.functions:
            # Those of numba's runtime are told by their names, and kept as they are.
            if each.linkage == llvm.Linkage.linkonce_odr and not each.name.startswith("NRT_"):
                each.linkage = llvm.Linkage.internal
        if self.unrolled or not _may_roll(self._codegen):
            super()._optimize_final_module()
        else:
            self._optimize_rolled()

    def _optimize_rolled(self) -> None:
        """As numba does but for the loops."""
        codegen = self._codegen
        inlined = {"loop_vectorize": False, "slp_vectorize": False, "opt": 0, "cost": "cheap"}
        passes, builder = codegen._module_pass_manager(**inlined)
        passes.run(self._final_module, builder)
        tuning = llvm.create_pipeline_tuning_options(speed_level=3)
        tuning.loop_vectorization, tuning.slp_vectorization = True, False
        tuning.loop_unrolling = tuning.loop_interleaving = False
        builder = llvm.create_pass_builder(codegen._tm, tuning)
        passes = builder.getModulePassManager()
        passes.add_refprune_pass()
        passes.run(self._final_module, builder)


@cache
def _marks_functions() -> bool:
    """Whether llvmlite gives a function attributes; before 0.48, what this returns has them."""
    module = llvm.parse_assembly("define void @f() { ret void }")
    for each in module.functions:
        each.add_function_attribute("noinline")
    try:
        module.verify()
    except RuntimeError:
        return False
    return True


def _may_roll(codegen: Any) -> bool:
    """Whether numba can (from 0.62 on), and is told nothing of its own by the environment."""
    told: Any = config
    usual = told.LOOP_VECTORIZE and told.LLVM_REFPRUNE_PASS and not told.SLP_VECTORIZE
    return usual and told.OPT == 3 and not told.OPT.is_opt_max and hasattr(codegen, "_pass_builder")


def _find(library: Any, found: dict[Any, None]) -> None:
    """Add to `found` what a library calls, then the library."""
    if library in found:
        return
    if isinstance(library, _Part):
        for called in library._linking_libraries:
            _find(called, found)
    found[library] = None


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):
    """As numba's, up to where it makes machine code."""

    _name = "csunmix_part"
    library: type[_Part] = _Part

    def run_pass(self, state: Any) -> bool:
        """Lower a function, and let other functions call it."""
        context, name = state.targetctx, state.func_id.func_name
        state.library = self.library(context.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = True
        super().run_pass(state)
        made = state["cr"]
        module, keep = made.fndesc.lookup_module(), (state.library,)
        stub = make_function(module, name, "Called by kernels.", _REFUSE, made.env, keep)
        context.insert_user_function(stub, made.fndesc, [state.library])
        state["cr"] = made._replace(cfunc=stub)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerGlue(_LowerPart):
    """The same of what runs seldom."""

    _name = "csunmix_glue"
    library = _Glue


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerKernel(NativeLowering):
    """As numba's, for code that is called from outside at one place alone."""

    _name = "csunmix_kernel"
    unrolled = False

    def run_pass(self, state: Any) -> bool:
        """Lower a function and make machine code of it and its parts."""
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.unrolled = self.unrolled
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerUnrolled(_LowerKernel):
    """The same of code with long loops over arrays."""

    _name = "csunmix_unrolled"
    unrolled = True


@register_pass(mutates_CFG=False, analysis_only=False)
class _Squares(FunctionPass):
    """``x ** 2`` as ``x * x``, the same of floats and 64-bit integers; numba makes a loop of it."""

    _name = "csunmix_squares"

    def __init__(self) -> None:  # that of numba's is abstract
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Write squares as products."""
        squares = 0
        for block in state.func_ir.blocks.values():
            for assigned in block.find_insts(ir.Assign):
                power = assigned.value
                if _is_square(state.func_ir, power):
                    assigned.value = ir.Expr.binop(operator.mul, power.lhs, power.lhs, power.loc)
                    squares += 1
        return squares > 0


def _is_square(function: Any, value: Any) -> bool:
    if not (isinstance(value, ir.Expr) and value.op == "binop" and value.fn is operator.pow):
        return False
    power = guard(find_const, function, value.rhs)
    return type(power) is int and power == 2  # 2.0 makes a float of an integer


class _Compiler(CompilerBase):
    """numba's compiler with a lowering of our own."""

    lowering: type[NativeLowering]

    def define_pipelines(self) -> list[Any]:
        """The only pipeline."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        ours = {NativeLowering: self.lowering}
        passes.passes = [
            (ours.get(each, each), about)
            for each, about in passes.passes
            if each.name() not in _IDLE
        ]
        passes.add_pass_after(_Squares, ReconstructSSA)
        passes.finalize()
        return [passes]


class _PartCompiler(_Compiler):
    """Compiles a function to what goes into those that call it."""

    lowering = _LowerPart


class _GlueCompiler(_Compiler):
    """The same of what runs seldom."""

    lowering = _LowerGlue


class _KernelCompiler(_Compiler):
    """Compiles a function that is called from outside."""

    lowering = _LowerKernel


class _UnrolledCompiler(_KernelCompiler):
    """The same of one with long loops over arrays."""

    lowering = _LowerUnrolled


class Part(CPUDispatcher):
    """A function for kernels and parts to call; where Python does, it is compiled by itself.

    One of `numba.njit` would not be linked to what it calls.
    """

    compiler: type[_Compiler] = _PartCompiler

    def __init__(
        self,
        py_func: Any,
        locals: dict[str, Any] | None = None,  # as numba names it, which unpickles by position
        targetoptions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(py_func, locals or {}, targetoptions or {}, pipeline_class=self.compiler)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """One version for a type, none of its own for a literal."""
        named = {name: unliteral(each) for name, each in kws.items()}
        return super().get_call_template(tuple(map(unliteral, args)), named)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the function that is compiled by itself."""
        return self._alone(*args, **named)

    @cached_property
    def _alone(self) -> Any:
        return compile_kernel(self.py_func, self.targetoptions)


class Glue(Part):
    """A part that runs seldom: hardly optimised, and sooner compiled."""

    compiler = _GlueCompiler


class Kernel(CPUDispatcher):
    """A function for Python to call, or for another kernel by its address."""

    compiler: type[_Compiler] = _KernelCompiler

    def __init__(
        self,
        py_func: Any,
        locals: dict[str, Any] | None = None,
        targetoptions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(py_func, locals or {}, targetoptions or {}, pipeline_class=self.compiler)

    @property
    def is_there(self) -> bool:
        """Whether a version for this processor is loaded, or kept on disk and up to date."""
        if self.signatures:
            return True
        of_numba: Any = self
        machine = of_numba.targetctx.codegen().magic_tuple()
        with suppress(OSError):  # another process writes it
            return any(machine in key for key in of_numba._cache._cache_file._load_index())
        return False

    def compile_for(self, *given: Any) -> None:
        """Compile it for such arguments."""
        self.compile(tuple(map(typeof, given)))

    def compile(self, signature: Any) -> Any:
        """Compile it, the short way."""
        with no_collection(), shortcuts():
            return super().compile(signature)


class Unrolled(Kernel):
    """A kernel with long loops over arrays, which it goes through several elements at a time."""

    compiler = _UnrolledCompiler


class Pointer:
    """A kernel for another to call that is given it, by its address.

    The other is compiled without it, and has to know what it takes and returns: as these examples.
    """

    def __init__(self, kernel: Kernel, given: tuple[Any, ...], returned: Any) -> None:
        self._kernel: Any = kernel
        self._signature = Signature(typeof(returned), tuple(map(typeof, given)), recvr=None)
        self._numba_type_ = FunctionType(self._signature)

    def __wrapper_address__(self) -> int:
        """Where its machine code is, for numba; it is compiled if there is none."""
        return self._address

    @cached_property
    def _address(self) -> int:
        given = self._signature.args
        self._kernel.compile(given)  # told what it returns, numba would take it for another
        made = self._kernel.overloads[given]
        if made.signature != self._signature:
            raise TypeError(f"{self._kernel} has the signature {made.signature}")
        return int(made.library.get_pointer_to_function(made.fndesc.llvm_cfunc_wrapper_name))


def compile_kernel(function: Any, options: dict[str, Any], kind: type[Kernel] = Kernel) -> Any:
    """Compile a function and what it calls, kept on disk until a file of this folder changes.

    numba looks at the function's own file alone, and its parts may be in others.
    """
    made: Any = kind(function, targetoptions=options)
    made.enable_caching()
    index = made._cache._cache_file
    index._source_stamp = (index._source_stamp, _digest())
    return made


@cache
def _digest() -> str:
    """What stands in the files of this folder, in few letters."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.blake2b(b"".join(each.read_bytes() for each in files)).hexdigest()
