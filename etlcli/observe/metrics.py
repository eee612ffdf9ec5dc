"""What a recipe says of metrics: through which doors Prometheus gets at them, and which ones of its own there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from etlcli.core import params
from etlcli.core.params import Declared
from etlcli.observe.doors import check_server, host_and_port


class MetricsSpec(Declared):
    pushgateway = params.text("A Pushgateway, http://HOST:PORT or http://USER:PASSWORD@HOST:PORT.", metavar="URL")
    textfile = params.text("A file for node_exporter's textfile collector.", metavar="FILE")
    listen = params.text("Where to be scraped while the run lasts.", metavar="HOST:PORT")
    every = params.duration("Time between two pushes, and between two versions of the text file.", default=15.0)
    timeout = params.duration("Longest time that a push may take.", default=5.0)

    def verify(self) -> None:
        for name, check in (("pushgateway", check_server), ("listen", host_and_port)):
            try:
                if value := getattr(self, name):
                    check(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if not (self.pushgateway or self.textfile or self.listen):
            raise ValueError("metrics needs one of pushgateway, textfile and listen")


_TYPES = ("counter", "gauge", "histogram")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ENDINGS = ("_total", "_bucket", "_sum", "_count", "_created", "_info")
_TAKEN = ("recipe", "step", "job", "le", "quantile")
"""Labels that the program, a Pushgateway or Prometheus gives a meaning."""


class CustomSpec(Declared):
    """A metric that a recipe declares: what is observed of the records that leave a step."""

    name = params.text("Its name; a counter's ends in _total.", required=True)
    type = params.choice(
        _TYPES, "What becomes of the values: their sum, the last, or how many lie where.", required=True
    )
    help = params.text("What it says, for whoever meets it in Prometheus.", default="A metric of the recipe.")
    step = params.text("The step whose output is looked at; of a sink its input. By default all that leaves the steps.")
    value = params.text("Expression for what is observed; a counter's is 1 by default.", metavar="EXPR")
    when = params.text("Condition of the records that are observed.", metavar="EXPR")
    labels = params.mapping("Expressions for the values of labels.")
    max_labels = params.integer(
        "Combinations of label values; what is beyond them counts as other.", default=100, minimum=1
    )
    buckets = params.numbers("Upper bounds of a histogram's buckets, which rise.")

    def verify(self) -> None:
        from etlcli.core.expressions import Expression, check_condition

        self._verify_name()
        if not self.value and self.type != "counter":
            raise ValueError(f"value: a {self.type} needs one")
        if self.type == "histogram" and not self.buckets:
            raise ValueError("buckets: a histogram needs them, for example [0.1, 1, 10]")
        if self.type != "histogram" and self.buckets:
            raise ValueError(f"buckets: a {self.type} has none")
        _verify("value", Expression, self.value)
        _verify("when", check_condition, self.when)
        for label, text in self.labels.items():
            place = f"labels.{label}"
            if not _NAME.fullmatch(label) or label.startswith("__"):
                raise ValueError(f"{place}: a label's name has only letters, digits and _, and does not begin with __")
            if label in _TAKEN:
                raise ValueError(f"{place}: the label {label} has a meaning of its own")
            if not isinstance(text, str):
                raise ValueError(f"{place}: expected an expression, as text, not {text!r}")
            _verify(place, Expression, text)

    def _verify_name(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} is no name for a metric: letters, digits and _, no digit first")
        if self.name.startswith("etl_"):
            raise ValueError("name: those that begin with etl_ are the program's own")
        if self.type == "counter":
            if not self.name.removesuffix("_total") or not self.name.endswith("_total"):
                raise ValueError(f"name: a counter's ends in _total, for example {self.name.strip('_')}_total")
        elif self.name.endswith(_ENDINGS):
            raise ValueError(
                f"name: no {self.type}'s ends in {', '.join(_ENDINGS)}: to Prometheus it is something else"
            )

    def series(self) -> tuple[str, ...]:
        """The names of all that comes of it, in any format: no other metric can have one of them."""
        if self.type == "counter":
            stem = self.name.removesuffix("_total")
            return self.name, stem, f"{stem}_created"
        more = ("_bucket", "_sum", "_count", "_created") if self.type == "histogram" else ()
        return self.name, *(self.name + ending for ending in more)


def _verify(place: str, check: Callable[[str], Any], text: str | None) -> None:
    try:
        if text is not None:
            check(text)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
