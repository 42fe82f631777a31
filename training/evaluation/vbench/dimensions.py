"""The sixteen dimensions of VBench: how each counts in the total, and which weight files it reads.

Limits and weights of the total are the constants of VBench's `scripts/constant.py`; files are those that the package 0.1.5 looks for below its cache
folder in its local mode. Price: another version of the package may look for others; then its own message is what a failed row says.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DIMENSIONS", "QUALITY_WEIGHT", "SEMANTIC_WEIGHT", "Dimension", "prompt_file_dimensions"]

QUALITY_WEIGHT = 4.0
SEMANTIC_WEIGHT = 1.0


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One dimension; the normalized score is `(score - low) / (high - low)`."""

    name: str
    quality: bool
    """Counts in the quality score, else in the semantic one."""
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    """Within its half of the total."""
    files: tuple[str, ...] = ()
    """Below the package's cache folder."""

    def normalized(self, score: float) -> float:
        """Score on the scale of the total."""
        return (score - self.low) / (self.high - self.low)


_CLIP_B, _CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
_GRIT = "grit_model/grit_b_densecap_objectdet.pth"
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz")

DIMENSIONS: dict[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        Dimension(
            name="subject_consistency",
            quality=True,
            low=0.1462,
            files=("dino_model/facebookresearch_dino_main", "dino_model/dino_vitbase16_pretrain.pth"),
        ),
        Dimension(name="background_consistency", quality=True, low=0.2615, files=(_CLIP_B,)),
        Dimension(name="temporal_flickering", quality=True, low=0.6293),
        Dimension(name="motion_smoothness", quality=True, low=0.706, high=0.9975, files=("amt_model/amt-s.pth",)),
        Dimension(name="dynamic_degree", quality=True, weight=0.5, files=("raft_model/models/raft-things.pth",)),
        Dimension(
            name="aesthetic_quality",
            quality=True,
            files=(_CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
        ),
        Dimension(name="imaging_quality", quality=True, files=("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",)),
        Dimension(name="object_class", quality=False, files=(_GRIT,)),
        Dimension(name="multiple_objects", quality=False, files=(_GRIT,)),
        Dimension(name="human_action", quality=False, files=("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",)),
        Dimension(name="color", quality=False, files=(_GRIT,)),
        Dimension(name="spatial_relationship", quality=False, files=(_GRIT,)),
        Dimension(name="scene", quality=False, high=0.8222, files=("caption_model/tag2text_swin_14m.pth",)),
        Dimension(name="appearance_style", quality=False, low=0.0009, high=0.2855, files=(_CLIP_B,)),
        Dimension(name="temporal_style", quality=False, high=0.364, files=_VICLIP),
        Dimension(name="overall_consistency", quality=False, high=0.364, files=_VICLIP),
    )
}
"""By name, in VBench's order."""

_SHARED_LISTS = {
    "subject_consistency": ("subject_consistency", "motion_smoothness", "dynamic_degree"),
    "overall_consistency": ("overall_consistency", "aesthetic_quality", "imaging_quality"),
    "scene": ("scene", "background_consistency"),
}


def prompt_file_dimensions(stem: str) -> tuple[str, ...]:
    """Dimensions that a file of `prompts_per_dimension` serves, by its name without suffix; none for other files."""
    return _SHARED_LISTS.get(stem, (stem,) if stem in DIMENSIONS else ())
