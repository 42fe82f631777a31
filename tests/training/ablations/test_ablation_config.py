"""The file of ablations: the shipped one, what variants become, and mistakes in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.config import build_config
from schemas.errors import ConfigError, UsageError
from training.ablations.config import chosen_variants, read_ablations, variant_settings
from training.config import TrainConfig

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "ablations.yaml"


def test_every_shipped_variant_is_a_training_configuration_that_changes_one_thing() -> None:
    config = read_ablations(SHIPPED)
    base = build_config(TrainConfig, variant_settings(config, None), source="base")
    found = {
        variant.name: build_config(TrainConfig, variant_settings(config, variant), source=variant.name)
        for variant in config.variants
    }
    assert {variant.group for variant in config.variants} == {
        "Shared Cross-Attention", "Decoder depth", "REPA length", "TREAD ratio", "Image to video", "Data", "Fine-tuning"
    }  # fmt: skip
    assert not found["sca_off"].model.shared_cross_attention and found["sca_ungrounded"].model.sca_source == "own"
    assert [found[name].model.decoder_blocks for name in ("decoder_0", "decoder_8")] == [
        0,
        8,
    ] and base.model.decoder_blocks == 4
    assert len({setting.model.total_blocks for setting in [base, *found.values()]}) == 1, "at equal total blocks"
    assert (
        found["repa_off"].repa is None
        and found["repa_half"].repa is not None
        and found["repa_half"].repa.until_step == 200
    )
    ratios = [found[name].tread for name in ("tread_0", "tread_25", "tread_75")]
    assert [None if tread is None else tread.drop_ratio for tread in [*ratios, base.tread]] == [None, 0.25, 0.75, 0.5]
    assert [found[name].i2v.probability for name in ("i2v_0", "i2v_30")] == [0.0, 0.3] and base.i2v.probability == 0.1
    assert found["sft"].steps == found["longer"].steps == 200 and base.steps == 400
    by_name = {variant.name: variant for variant in config.variants}
    assert (by_name["sft"].after, by_name["sft"].against, by_name["sft"].data) == ("base", "longer", "sft")
    assert {name: by_name[name].data for name in ("data_half", "data_quarter")} == {
        "data_half": "half",
        "data_quarter": "quarter",
    }
    assert all(variant.question.rstrip(".").count(" ") > 4 for variant in config.variants)


def test_steps_of_the_command_reach_keys_that_count_them() -> None:
    config = read_ablations(SHIPPED, ("steps=60",))
    by_name = {variant.name: variant for variant in config.variants}
    assert variant_settings(config, by_name["repa_half"])["repa"]["until_step"] == 30
    assert variant_settings(config, by_name["sft"])["steps"] == 30
    assert variant_settings(config, None, seed=2)["seed"] == 2
    assert config.seeds == 4
    shortest = read_ablations(SHIPPED, ("steps=1",))
    assert variant_settings(shortest, by_name["repa_half"])["repa"]["until_step"] == 1, "a share is at least a step"


def test_variants_after_others_have_seeds_of_their_own() -> None:
    """With the base's seed `longer` would see the very noise and times of the base's steps again, `sft` new ones."""
    for first in (0, 7):
        config = read_ablations(SHIPPED, (f"base.seed={first}",))
        seeds = {variant.name: variant_settings(config, variant)["seed"] for variant in config.variants}
        own = {seeds.pop(name) for name in ("longer", "sft")}
        assert set(seeds.values()) == {first}, "all others differ from the base in one thing"
        assert len(own) == 2 and own.isdisjoint(range(first, first + 100))
    longer = next(variant for variant in read_ablations(SHIPPED).variants if variant.name == "longer")
    chosen = longer.model_copy(update={"changes": {"seed": 3}})
    assert variant_settings(config, chosen)["seed"] == 3
    assert variant_settings(config, longer) == variant_settings(config, longer), "the same in every call"


def test_only_takes_along_what_a_variant_needs() -> None:
    config = read_ablations(SHIPPED)
    assert [variant.name for variant in chosen_variants(config, "sft,tread_0")] == ["tread_0", "longer", "sft"]
    assert chosen_variants(config, "base") == () and len(chosen_variants(config, "")) == len(config.variants)
    with pytest.raises(UsageError, match="--only has sfft, expected some of base, sca_off"):
        chosen_variants(config, "sfft")


VARIANT = {"name": "a", "group": "g", "question": "q"}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([VARIANT, VARIANT], "two variants are called 'a'"),
        ([{**VARIANT, "name": "base"}], "two variants are called 'base'"),
        ([{**VARIANT, "name": "../a"}], "variants.0.name: give text of the "),
        (
            [{**VARIANT, "after": "b"}, {**VARIANT, "name": "b"}],
            "variant 'a': after is 'b', expected one before it: base",
        ),
        ([{**VARIANT, "data": "third"}], "variant 'a': data is 'third', expected one of half"),
        ([{**VARIANT, "changes": {"tread.ratio": 0.5}}], "a: tread.ratio: unknown key"),
        ([{**VARIANT, "changes": {"model.decoder_blocks": "many"}}], "a: model.decoder_blocks: "),
        ([{**VARIANT, "changes": {"model.single_blocks": 0}}], "a: "),
        ([{**VARIANT, "change": {}}], "variants.0.change: unknown key; did you mean 'changes'?"),
        ([], "variants: "),
    ],
)
def test_mistakes_name_the_variant_before_anything_runs(
    variants: list[dict[str, Any]], message: str, ablation_file: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_ablations(ablation_file(variants=variants))
    assert message in str(caught.value)
