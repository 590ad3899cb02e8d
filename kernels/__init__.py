"""The numerical kernels, on plain arrays.  Installed as ``sparse_dnm.kernels``; imports nothing of sparse_dnm."""

if __name__ != "sparse_dnm.kernels":
    raise ImportError(
        f"imported as {__name__!r}: this folder is the package sparse_dnm.kernels; install the project "
        "(pip install -e .) and import that name"
    )
