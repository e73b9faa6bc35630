"""The selector language, with a near miss for each thing that it promises."""

from __future__ import annotations

import re
from collections import OrderedDict
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.errors import SelectionError
from frostline.selection import describe, select, select_names
from tests.zoo import ZOO


class Tree(nn.Module):
    """Names that differ by little: layer1 and layer10, bn1 at the root and below."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm1d(2)
        for i in (1, 2, 3, 4, 10):
            layer = nn.Sequential(OrderedDict(fc=nn.Linear(2, 2), bn1=nn.BatchNorm1d(2)))
            self.add_module(f"layer{i}", layer)
        self.drop = nn.Dropout()
        self.cls_token = nn.Parameter(torch.zeros(2))
        self.register_buffer("scale", torch.ones(2), persistent=False)
        self.cache = torch.zeros(2)


def modules(model: nn.Module, selector: object, exclude: object = None) -> list[str]:
    return [name for name, _ in select(model, selector, exclude).modules]


def tensors(model: nn.Module, selector: object, exclude: object = None) -> list[str]:
    return [entry.name for entry in select(model, selector, exclude).tensors]


def below(*layers: int) -> list[str]:
    return [name for i in layers for name in (f"layer{i}", f"layer{i}.fc", f"layer{i}.bn1")]


NORMS = ["bn1", *(f"layer{i}.bn1" for i in (1, 2, 3, 4, 10))]

BY_MODULES = {
    "a name is anchored: layer1 is not layer10": ("layer1", below(1)),
    "a star stays within one name": ("layer1*", below(1, 10)),
    "a star does not span a dot": ("*.bn1", NORMS[1:]),
    "two stars span any number, none included": ("**.bn1", NORMS),
    "two stars in the middle": ("layer2.**.bn1", ["layer2.bn1"]),
    "two stars at the end take the thing itself": ("layer2.**", below(2)),
    "a range": ("layer[1-3]", below(1, 2, 3)),
    "a range is one character: not layer10": ("layer[1-4]", below(1, 2, 3, 4)),
    "a negated range": ("layer[!1-3]", below(4)),
    "a question mark is one character": ("layer?", below(1, 2, 3, 4)),
    "a deep name": ("layer1.bn1", ["layer1.bn1"]),
    "a regular expression must match all of the name": (re.compile("layer1"), below(1)),
    "a regular expression with an open end": (re.compile("layer1.*"), below(1, 10)),
    "a type": (nn.BatchNorm1d, NORMS),
    "a type's subclasses": (nn.modules.batchnorm._BatchNorm, NORMS),
    "a predicate on names": (lambda name, m: name.endswith("2"), below(2)),
    "a predicate on modules": (lambda name, m: isinstance(m, nn.Dropout), ["drop"]),
    "a sequence is a union": (["layer1", "bn1"], ["bn1", *below(1)]),
    "a tuple as well, nested": (("layer1", ["layer2"]), below(1, 2)),
    "double selection counts once": (["layer1", "layer1.bn1", nn.BatchNorm1d], None),
}


@pytest.mark.parametrize(("selector", "expected"), BY_MODULES.values(), ids=BY_MODULES)
def test_modules(selector: object, expected: list[str] | None) -> None:
    found = modules(Tree(), selector)
    assert found == expected if expected is not None else len(found) == len(set(found))


def test_a_module_object_and_none() -> None:
    tree = Tree()
    assert modules(tree, tree.layer2) == below(2)
    assert modules(tree, None)[0] == ""
    assert tensors(tree, None) == tensors(tree, tree)


def test_root_tensors_by_their_own_names() -> None:
    tree = Tree()
    assert tensors(tree, "cls_token") == ["cls_token"]
    assert modules(tree, "cls_token") == []
    assert tensors(tree, ["scale", "cache"]) == ["scale", "cache"]
    # A pattern of one component finds root tensors, and modules with all below them.
    assert tensors(tree, "c*") == ["cls_token", "cache"]


def test_one_tensor_below_a_module() -> None:
    assert tensors(Tree(), "layer1.bn1.running_mean") == ["layer1.bn1.running_mean"]
    assert tensors(Tree(), "**.weight")[0] == "bn1.weight"


def test_exclude() -> None:
    tree = Tree()
    assert modules(tree, "layer1", "**.bn1") == ["layer1", "layer1.fc"]
    assert tensors(tree, "layer1", nn.BatchNorm1d) == ["layer1.fc.weight", "layer1.fc.bias"]
    assert tensors(tree, "layer1.fc", "**.bias") == ["layer1.fc.weight"]


def nested(*path: str) -> object:
    """A wrapper that hangs the model below `path`, as PEFT and FSDP1 do."""

    def wrap(model: nn.Module) -> nn.Module:
        for name in reversed(path):
            outer = nn.Module()
            outer.add_module(name, model)
            model = outer
        return model

    return wrap


WRAPPERS = {
    "PEFT": nested("base_model", "model"),
    "FSDP1": nested("_fsdp_wrapped_module"),
    "FSDP1 in DDP": nested("module", "_fsdp_wrapped_module"),
    "DataParallel": nn.DataParallel,
    "compile": lambda m: torch.compile(m, backend="eager"),
    "compiled DataParallel": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_ignored(wrap: object) -> None:
    tree = Tree()
    wrapped = wrap(tree)
    for selector in ("layer1", "**.bn1", re.compile("layer1"), ["bn1", "cls_token"]):
        assert tensors(wrapped, selector) == tensors(tree, selector)


def test_a_module_that_is_really_called_module() -> None:
    # Only the leading `module` is a wrapper's: the user's own keeps its name.
    net = nn.ModuleDict({"stem": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    assert modules(net, "stem.module") == ["stem.module"]


def test_parametrised_tensors_have_their_own_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.utils.parametrizations.spectral_norm(net[0])
    assert "0.weight" in tensors(net, "0.weight")
    assert "1.weight" not in tensors(net, "0.weight")


class _Sub(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("layer5", "'layer4'"),
        ("layr10", "'layer10'"),
        ("backbone.bn1", "'bn1'"),
        ("layer1.bn2", "'layer1.bn1'"),
        (re.compile("layer"), "'layer4'"),
        (["layer1", "layr2"], "'layer2'"),
        (_Sub, "_Sub selects no module of this Tree"),
        (lambda name, m: False, "selects no module of this Tree"),
        ([], "empty list"),
        (nn.Linear(2, 2), "is not a submodule of this Tree"),
        (int, "int is no module type"),
        (7, "cannot select by int"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_match_says_what_is_near(selector: object, says: str) -> None:
    with pytest.raises(SelectionError, match=re.escape(says)):
        select(Tree(), selector)


def test_nothing_left_after_exclude() -> None:
    with pytest.raises(SelectionError, match='nothing in Tree is left of "layer1" after exclude'):
        select(Tree(), "layer1", "layer*")
    with pytest.raises(SelectionError, match="'layer1'"):
        select(Tree(), "layer1", exclude="layer11")


# --- FLAGGED: below each case the answer that DESIGN's sentence gives, worked out by hand ---------


class Flags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2, affine=False))
        self.mixed = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
        self.alive = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
        self.loose = nn.BatchNorm1d(2, affine=False)
        self.frozen.requires_grad_(False)
        self.mixed[0].requires_grad_(False)


def test_flagged_truth_table() -> None:
    assert modules(Flags(), fl.FLAGGED) == ["frozen", "frozen.0", "frozen.1", "frozen.2", "mixed.0"]


def test_flagged_when_everything_is() -> None:
    net = Flags().requires_grad_(False)
    assert modules(net, fl.FLAGGED) == [name for name, _ in net.named_modules()]


def test_flagged_takes_a_single_parameter_of_a_trainable_module() -> None:
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    chosen = select(net, fl.FLAGGED)
    assert [t.name for t in chosen.tensors] == ["bias"]
    assert chosen.modules == []


def test_flagged_takes_the_buffers_of_its_modules_only() -> None:
    chosen = tensors(Flags(), fl.FLAGGED)
    assert "frozen.2.running_mean" in chosen
    assert not any(name.startswith(("alive", "loose", "mixed.2")) for name in chosen)


def test_flagged_with_nothing_flagged() -> None:
    with pytest.raises(SelectionError, match=r"no parameter of this Tree.*fl.freeze\(model"):
        select(Tree(), fl.FLAGGED)


def test_flagged_brute_force_over_every_choice_of_flags() -> None:
    """A slow reading of the definition agrees for all 2^5 ways to set five flags."""
    for count in range(1, 6):
        for chosen in combinations(range(5), count):
            net = Flags().requires_grad_(True)
            weights = [net.frozen[0], net.mixed[0], net.mixed[2], net.alive[0]]
            owners = [*weights, None]
            for i in chosen:
                if owners[i] is None:
                    net.frozen[0].bias.requires_grad_(False)
                else:
                    owners[i].weight.requires_grad_(False)
                    owners[i].bias.requires_grad_(False)
            assert set(modules(net, fl.FLAGGED)) == _flagged_slowly(net)


def _flagged_slowly(net: nn.Module) -> set[str]:
    found = set()
    for name, module in net.named_modules():
        path = name
        while not list(module.parameters()) and path:
            path = path.rpartition(".")[0]
            module = net.get_submodule(path)
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            found.add(name)
    return found


# --- manifests as selectors ----------------------------------------------------------------------


def test_a_manifest_selects_its_names_and_nothing_below_them() -> None:
    tree = Tree()
    manifest = fl.manifest(tree, "layer1.bn1")
    assert tensors(tree, manifest) == list(manifest.entries)


def test_a_manifest_of_another_model() -> None:
    manifest = fl.manifest(Tree(), "layer10")
    other = nn.ModuleDict({"layer1": nn.Linear(2, 2)})
    with pytest.raises(SelectionError, match=r"names of the manifest are not in this ModuleDict"):
        select(other, manifest)


# --- tied and overlapping tensors ----------------------------------------------------------------


def test_half_of_a_tied_pair_names_the_group() -> None:
    gpt2 = ZOO["gpt2"].build(steps=0)
    expected = r"transformer\.wte\.weight = lm_head\.weight are one tied tensor"
    with pytest.raises(SelectionError, match=expected) as caught:
        fl.freeze(gpt2, "transformer")
    assert "'lm_head.weight'" in str(caught.value)
    assert all(p.requires_grad for p in gpt2.parameters())


def test_all_places_of_a_tied_tensor() -> None:
    gpt2 = ZOO["gpt2"].build(steps=0)
    part = fl.freeze(gpt2, ["transformer.wte", "lm_head"])
    assert not gpt2.lm_head.weight.requires_grad
    assert set(part.tensors) == {"transformer.wte.weight", "lm_head.weight"}


def test_excluding_the_tied_tensor() -> None:
    gpt2 = ZOO["gpt2"].build(steps=0)
    fl.freeze(gpt2, "transformer", exclude="transformer.wte")
    assert gpt2.lm_head.weight.requires_grad
    assert not gpt2.transformer.wpe.weight.requires_grad


def test_unfreezing_half_of_a_tied_pair() -> None:
    gpt2 = ZOO["gpt2"].build(steps=0)
    fl.freeze(gpt2)
    with pytest.raises(SelectionError, match="are one tied tensor"):
        fl.unfreeze(gpt2, "lm_head")
    assert not gpt2.lm_head.weight.requires_grad


class Shared(nn.Module):
    """Two parameters that look into one storage, apart or not."""

    def __init__(self, start: int) -> None:
        super().__init__()
        flat = torch.zeros(8)
        self.left, self.right = nn.Module(), nn.Module()
        self.left.weight = nn.Parameter(flat[:4])
        self.right.weight = nn.Parameter(flat[start:])


def test_overlap_by_byte_range() -> None:
    with pytest.raises(SelectionError, match=r"left\.weight and right\.weight share bytes"):
        fl.freeze(Shared(3), "left")
    fl.freeze(Shared(3), ["left", "right"])


def test_neighbours_in_one_storage_do_not_overlap() -> None:
    assert set(fl.freeze(Shared(4), "left").tensors) == {"left.weight"}


# --- names alone ---------------------------------------------------------------------------------


def test_select_names() -> None:
    names = ["layer1.weight", "layer10.weight", "bn1.weight", "x.bn1.weight"]
    assert select_names(names, "layer1") == ["layer1.weight"]
    assert select_names(names, "**.bn1") == ["bn1.weight", "x.bn1.weight"]
    assert select_names(names, ["layer10", re.compile("bn1")]) == ["layer10.weight", "bn1.weight"]
    assert select_names(names) == names


@pytest.mark.parametrize(
    "selector", [nn.Linear, fl.FLAGGED, lambda n, m: True], ids=["type", "FLAGGED", "predicate"]
)
def test_select_names_needs_no_model_or_says_so(selector: object) -> None:
    with pytest.raises(SelectionError, match="needs a live model"):
        select_names(["a"], selector)


def test_select_names_without_a_match() -> None:
    with pytest.raises(SelectionError, match=r"matches nothing.*'layer1\.weight'"):
        select_names(["layer1.weight"], "layer2.weight")


# --- the matcher against a slow one --------------------------------------------------------------

COMPONENT = st.sampled_from(["a", "b", "ab", "a1", "a10", "bn1"])
PATTERN = st.sampled_from(["a", "b", "*", "**", "a*", "?", "a?", "[ab]", "[!a]", "*1", "bn1", "**"])


def _as_regex(pattern: list[str]) -> str:
    """Each component `/x`; two stars any number of components, none included."""
    one = {"*": "[^/]*", "?": "[^/]"}
    made = ""
    for component in pattern:
        if component == "**":
            made += "(?:/[^/]*)*"
            continue
        body = component.replace("[!", "[^")
        if not body.startswith("["):
            body = "".join(one.get(c, re.escape(c)) for c in body)
        made += "/" + body
    return made


@settings(deadline=None)
@given(st.lists(PATTERN, min_size=1, max_size=4), st.lists(COMPONENT, min_size=1, max_size=4))
def test_the_matcher_against_a_regular_expression(pattern: list[str], name: list[str]) -> None:
    # One name without anything below it, so that "brings all below" cannot hide a wrong match.
    expected = [".".join(name)] if _slow_prefix_match(pattern, name) else []
    try:
        found = select_names([".".join(name)], ".".join(pattern))
    except SelectionError:
        found = []
    assert found == expected


def _slow_prefix_match(pattern: list[str], name: list[str]) -> bool:
    regex = re.compile(_as_regex(pattern))
    return any(regex.fullmatch("/" + "/".join(name[:i])) for i in range(1, len(name) + 1))


@settings(deadline=None)
@given(
    st.lists(PATTERN, min_size=1, max_size=3), st.sets(st.tuples(COMPONENT, COMPONENT), min_size=1)
)
def test_live_models_and_names_agree(pattern: list[str], leaves: set[tuple[str, str]]) -> None:
    model = nn.Module()
    for outer, inner in sorted(leaves):
        if outer not in model._modules:
            model.add_module(outer, nn.Module())
        getattr(model, outer).register_parameter(inner, nn.Parameter(torch.zeros(1)))
    selector = ".".join(pattern)
    names = [name for name, _ in model.named_parameters()]
    try:
        expected = select_names(names, selector)
    except SelectionError:
        expected = []
    try:
        found = tensors(model, selector)
    except SelectionError:
        found = []
    # "**" alone names the root too, and with it everything: the same either way.
    assert found == expected


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (None, "the whole model"),
        ("a.*", '"a.*"'),
        (re.compile("a+"), "re.compile('a+')"),
        (nn.Linear, "Linear"),
        (fl.FLAGGED, "fl.FLAGGED"),
        (["a", nn.Linear], '["a", Linear]'),
        (nn.Linear(1, 1), "the module Linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_describe(selector: object, text: str) -> None:
    assert describe(selector) == text
