"""How a DAG of neurons runs: structures, kernels, autograd functions, executors."""
