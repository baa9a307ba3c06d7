"""The list of methods: what it says of each, and how it is printed."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from ppll.cli.options import give_rows
from ppll.errors import ModelError
from ppll.methods import Paper, methods
from ppll.methods.greedy import Greedy
from ppll.registry import Entry
from ppll.site import BlockSite
from ppll.zoo import as_table, describe_methods, travels

NETWORKS = {"resnet32", "vit-tiny"}


class OnlyMaps(Greedy):
    """Works on residual networks alone."""

    paper = Paper("Maps only", 2026, "here")

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        if len(site.feature_shape) != 3:
            raise ModelError("found no map")
        return super().build_auxiliary(site)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """A row a method, with one that works on a single network beside the zoo."""
    with pytest.MonkeyPatch.context() as patch:
        entries = {**methods._entries, "maps": Entry("maps", "made up", OnlyMaps)}
        patch.setattr(methods, "_entries", entries)
        return {row["name"]: row for row in describe_methods()}


@pytest.mark.slow
def test_every_method_has_a_row(rows) -> None:
    assert set(rows) == {entry.name for entry in methods} | {"maps"}
    for row in rows.values():
        assert row["paper"]
        assert row["year"] > 1900
        assert row["travels"][:2] == ["features", "targets"]
        assert set(row["auxiliary_compute"]) == set(row["auxiliary_parameters"]) == NETWORKS


@pytest.mark.slow
def test_shares_are_numbers_and_none_where_a_method_cannot_work(rows) -> None:
    assert rows["backprop"]["auxiliary_compute"] == dict.fromkeys(NETWORKS, 0.0)
    for name in rows.keys() - {"backprop", "maps"}:
        for kind in ("auxiliary_compute", "auxiliary_parameters"):
            assert all(share > 0 for share in rows[name][kind].values())
    assert rows["maps"]["auxiliary_compute"]["vit-tiny"] is None
    assert rows["maps"]["auxiliary_compute"]["resnet32"] > 0


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("dgl", {}, []),
        ("contsup", {}, ["image"]),
        ("contsup", {"context": "R1"}, ["input of the block before"]),
        ("contsup", {"context": "R1E"}, ["image", "input of the block before"]),
        ("zerolock", {}, ["prediction (second part)"]),
        ("man", {}, ["next block's first layer (side channel)"]),
    ],
)
def test_what_travels_is_said_in_words(method: str, options, expected: list[str]) -> None:
    assert travels(methods.build(method, options)) == ["features", "targets", *expected]


def test_the_table_shows_percentages(rows) -> None:
    table = {row["name"]: list(row.values()) for row in as_table(list(rows.values()))}
    assert table["backprop"][-2:] == ["0 / 0", "0 / 0"]
    assert table["greedy"][-2] == "<0.1 / <0.1"
    assert table["maps"][-2] == "<0.1 / -"
    shares = rows["dgl"]["auxiliary_parameters"].values()
    assert table["dgl"][-1] == " / ".join(f"{100 * share:.0f}" for share in shares)
    (first, *_) = as_table(list(rows.values()))
    assert list(first)[-1] == "auxiliary\nparameters (%)\nResNet-32 /\nViT-tiny"


def test_the_table_is_short_and_fits_on_eighty_columns(rows, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    zoo = [row for name, row in rows.items() if name != "maps"]
    give_rows("Methods", as_table(zoo), None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 2 * len(zoo)
