"""The version of the package. It stands apart so that no module has to import the package itself."""

__version__ = "0.1.0"
