"""Numba's compiler, without the work that a function inside a kernel does not need.

Numba optimises every function by itself, turns it into machine code and wraps it twice for Python, and does all of that
again for whoever calls it.  A kernel is made of some thirty functions, four deep.  Here what a kernel is made of stays
LLVM's code, tidied up, until the kernel is whole; then the kernel is optimised and turned into machine code, once.
"""

from llvmlite import binding as llvm
from numba.core import lowering, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import BaseNativeLowering, NativeLowering, NativeParforLowering


class PartLibrary(JITCodeLibrary):
    """Code that kernels take into theirs: function by function simplified, but neither optimised as a whole nor turned
    into machine code."""

    def _optimize_functions(self, ll_module):
        """None of Numba's passes for each function: the kernel has them all."""
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        passes = llvm.create_new_module_pass_manager()
        passes.add_always_inliner_pass()
        passes.add_global_dead_code_eliminate_pass()
        passes.add_sroa_pass()
        passes.add_simplify_cfg_pass()
        passes.add_refprune_pass()
        builder = self._codegen._pass_builder(opt=1, loop_vectorize=False, slp_vectorize=False)
        passes.run(self._final_module, builder)

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        """0: there is no machine code."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """Numba hands it the environment of a function, which only machine code has."""
        return _NoEnvironment


class _NoEnvironment:
    @staticmethod
    def set_env(name, environment):
        pass


class TaskLibrary(PartLibrary):
    """A part that stays a function of its own in the kernel: what calls it keeps its registers."""

    def add_ir_module(self, ir_module):
        """Mark the function, and take its code."""
        for function in ir_module.functions:
            if function.blocks and "alwaysinline" not in function.attributes:
                function.attributes.add("noinline")
        super().add_ir_module(ir_module)


@register_pass(mutates_CFG=True, analysis_only=False)
class PartLowering(BaseNativeLowering):
    """From Numba's code to LLVM's, for what only kernels call."""

    _name = "part_lowering"

    @property
    def lowering_class(self):
        """See BaseNativeLowering."""
        return lowering.Lower

    def run_pass(self, state):
        """See BaseNativeLowering."""
        library = PartLibrary if state.flags.forceinline else TaskLibrary
        state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().run_pass(state)


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(NativeParforLowering):
    """As Numba's; the bodies of parallel loops are parts."""

    _name = "kernel_lowering"

    def run_pass(self, state):
        """See BaseNativeLowering."""
        codegen = state.targetctx.codegen()
        state.library = codegen.create_library(state.func_id.func_qualname)
        state.library.enable_object_caching()
        original = codegen.create_library

        def create_library(name, **options):
            is_loop = "parfor_gufunc" in name or "GufuncWrapper" in name
            return PartLibrary(codegen, name) if is_loop else original(name, **options)

        codegen.create_library = create_library
        try:
            return super().run_pass(state)
        finally:
            del codegen.create_library


# What kernels do not have: with blocks, closures, literal_unroll, literally, exceptions, array expressions
NEEDLESS = (
    typed_passes.AnnotateTypes,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.NoPythonSupportedFeatureValidation,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.GenericRewrites,
    untyped_passes.InlineClosureLikes,
    untyped_passes.InlineInlinables,
    untyped_passes.LiteralPropagationSubPipelinePass,
    untyped_passes.LiteralUnroll,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.WithLifting,
)


def _pipeline(state, lowering_pass, without=()):
    builder = DefaultPassBuilder
    manager = PassManager(lowering_pass._name)
    parts = builder.define_untyped_pipeline, builder.define_typed_pipeline, builder.define_nopython_lowering_pipeline
    for each in (each for part in parts for each in part(state).passes):
        is_lowering = each[0] in (NativeLowering, NativeParforLowering)
        if each[0] not in without:
            manager.passes.append((lowering_pass, "lowering") if is_lowering else each)
    manager.finalize()
    return [manager]


class PartCompiler(CompilerBase):
    """Compiles `inner` functions and `task`s."""

    def define_pipelines(self):
        """See CompilerBase."""
        return _pipeline(self.state, PartLowering, NEEDLESS)


class KernelCompiler(CompilerBase):
    """Compiles kernels with parallel loops."""

    def define_pipelines(self):
        """See CompilerBase."""
        return _pipeline(self.state, KernelLowering)
