"""Videos of fixed prompts and seeds from a network in training, sharded or not.

    <run>/samples/step-00000020/    0001.mp4 ... (prompt by prompt, seed by seed), contact-sheet.png, samples.json (written last)

Prompts are encoded once, before training, by rank 0, and sent to all. Clips are dealt to the ranks in turn; each rank samples, decodes and
writes its own, and rank 0 gathers thumbnails for the sheet. Where the clips do not divide, some rank samples its last one again and throws
it away, because sharded networks must run equally many passes. The noise is that of `reelyard-train sample`, so a video can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from schemas.command import say
from schemas.errors import ConfigError, ModelMissingError
from schemas.files import said_if_unwritten
from schemas.shards import SetInfo
from training.config import TrainConfig
from training.evaluation.settings import EvaluationConfig
from training.parallel import World
from training.sampling.gallery import clip_path, write_index
from training.sampling.integrate import Conditions, Velocity, sample_as_trained
from training.sampling.pipeline import open_codec
from training.sampling.prompts import encode_texts
from training.video import thumbnails, write_mp4

__all__ = ["TrainingSamples", "open_training_samples", "samples_folder"]


@dataclass(frozen=True, kw_only=True)
class TrainingSamples:
    """Fixed prompts, as states, and what turns latents into videos."""

    config: EvaluationConfig
    run: TrainConfig
    info: SetInfo
    codec_path: Path | None
    texts: tuple[np.ndarray, ...]
    """Of the prompts; on rank 0 only, until they are shared."""
    null_text_ED: np.ndarray
    note: str | None

    @property
    def clips(self) -> list[tuple[int, int]]:
        """(prompt, seed) of each video, in order."""
        return [(prompt, seed) for prompt in range(len(self.config.prompts)) for seed in self.config.seeds]

    def shared(self, world: World) -> TrainingSamples:
        """The same on every rank, with rank 0's texts; every rank calls it."""
        prompts = len(self.config.prompts)
        negative = self.config.sampler.negative_prompt is not None
        mine = [*self.texts, *([self.null_text_ED] if negative else [])] if world.rank == 0 else []
        lengths = world.sum_int64([len(text) for text in mine] or [0] * (prompts + negative))
        width = self.run.model.text_width
        flat = torch.zeros((sum(lengths), width), dtype=torch.float32, device=world.device)
        if mine:
            flat.copy_(torch.from_numpy(np.concatenate(mine).astype(np.float32)))
        # float16 states come through float32 unchanged; a sum with zeros is a broadcast.
        states = np.split(world.sum_tensor(flat).cpu().numpy().astype(np.float16), np.cumsum(lengths)[:-1])
        return TrainingSamples(
            config=self.config,
            run=self.run,
            info=self.info,
            codec_path=self.codec_path,
            texts=tuple(states[:prompts]),
            null_text_ED=states[-1] if negative else self.null_text_ED,
            note=self.note,
        )

    def make(
        self,
        velocity: Velocity,
        world: World,
        folder: Path,
        *,
        done: int,
        weights: str,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """Sample, decode and write all clips with the network as it is; every rank calls it.

        `go_on` is called after every step of the solver, on all ranks equally often; what it raises ends the making.

        Raises:
            ReelyardError: when this rank cannot decode or write; OtherRankError when another cannot.
        """
        with world.failing_together():
            codec = open_codec(self.info.codec, self.codec_path, world.device)
        clips = self.clips
        rows: list[np.ndarray] = []
        for first in range(0, len(clips), world.size):
            place = first + world.rank
            prompt, seed = clips[min(place, len(clips) - 1)]
            latent_BTCYX = sample_as_trained(
                self.run,
                velocity,
                Conditions(texts=[self.texts[prompt]], null_text_ED=self.null_text_ED),
                self.config.size,
                self.config.sampler,
                seeds=[seed],
                device=world.device,
                on_step=lambda _done, _total: go_on(),
            )
            with world.failing_together():
                frames_THWC = codec.decode(latent_BTCYX[0].numpy().astype(np.float16))
                if place < len(clips):
                    with said_if_unwritten(clip_path(folder, place)):
                        write_mp4(clip_path(folder, place), frames_THWC, self.info.fps)
            gathered = world.gather(torch.from_numpy(thumbnails(frames_THWC)).to(world.device))
            rows += [part.cpu().numpy() for part in gathered[: len(clips) - first]]
        with world.failing_together():
            if world.rank == 0:
                with said_if_unwritten(folder):
                    self._write_index(folder, rows, done, weights)

    def _write_index(self, folder: Path, rows: Sequence[np.ndarray], done: int, weights: str) -> None:
        config = self.config
        facts = {
            "steps_done": done,
            "weights": weights,
            "size": str(config.size),
            "fps": self.info.fps,
            "sampler": config.sampler.model_dump(mode="json"),
            "notes": [] if self.note is None else [self.note],
        }
        write_index(
            folder, rows, [{"prompt": config.prompts[prompt], "seed": seed} for prompt, seed in self.clips], facts
        )
        say(f"after {done} steps: {len(rows)} videos in {folder}")


def open_training_samples(
    config: EvaluationConfig,
    run: TrainConfig,
    info: SetInfo,
    null_text_ED: np.ndarray,
    world: World,
    *,
    text_encoder_path: Path | None,
    codec_path: Path | None,
) -> TrainingSamples:
    """Encode the prompts on rank 0, and see that the codec is there on all; to be `shared` once no rank has failed.

    Raises:
        ModelMissingError, ConfigError: when an encoder or codec is not on this machine, or does not fit the network.
    """
    texts: tuple[np.ndarray, ...] = ()
    note = None
    try:
        open_codec(info.codec, codec_path, world.device)
        if world.rank == 0:
            negative = config.sampler.negative_prompt
            encoded = encode_texts(
                [*config.prompts, *([] if negative is None else [negative])],
                encoder=info.text_encoder,
                path=text_encoder_path,
                width=run.model.text_width,
                device=world.device.type,
                asked_by="evaluation",
            )
            texts = encoded.states[: len(config.prompts)]
            null_text_ED = null_text_ED if negative is None else encoded.states[-1]
            if encoded.fingerprint != info.text_encoder_fingerprint:
                note = (
                    "evaluation: the text encoder is not the one that made the set's captions "
                    f"(fingerprint {encoded.fingerprint}, set.json has {info.text_encoder_fingerprint})"
                )
    except (ModelMissingError, ConfigError) as error:
        raise type(error)(f"{error}\nor train without videos on the way: --set evaluation=null") from error
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    return TrainingSamples(
        config=config,
        run=run,
        info=info,
        codec_path=codec_path,
        texts=texts,
        null_text_ED=null_text_ED,
        note=note,
    )


def samples_folder(run: Path, done: int) -> Path:
    """Where the videos made after `done` steps lie."""
    return run / "samples" / f"step-{done:08d}"
