"""LEDPO: learnable-beta preference optimisation as training stages of LLaMA-Factory.

Importing this package imports nothing else: it is loaded at every start of the interpreter
(see `ledpo_plugin.autoload`), so it must stay free.
"""

__version__ = "0.1.0"
