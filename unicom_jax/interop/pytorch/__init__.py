"""The PyTorch model that an export carries: these files are copied into it and run without JAX."""
