"""From a table of labeled text to a launch decision that you can defend."""

from .base.threads import limit_spinning

__version__ = "0.1.0"

limit_spinning() # before PyTorch is loaded

# What `from insight_nb import ...` gives, and where it is. Each is imported when it is asked for.
_WHERE = {
    "TextClassifier": "jobs.text_estimators", "PairClassifier": "jobs.text_estimators",
    "MultiLabelClassifier": "jobs.text_estimators", "TextRegressor": "jobs.text_estimators",
    "PairRegressor": "jobs.text_estimators",
    "SpanTagger": "jobs.span_tagger", "load": "jobs.loading"}


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'insight_nb' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"insight_nb.{_WHERE[name]}"), name)


def __dir__():
    return sorted([*globals(), *_WHERE])
