"""The groups of the ``kmb`` command line, one module each, loaded when they are used."""
