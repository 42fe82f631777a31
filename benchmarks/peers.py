"""Other loaders as sides of `loader.py`, in the environment of `make bench-peers`: the same samples, the same arrays, batched alike.

Each peer writes its own format from the tars of the set, if it has one, and is read as its documentation says for a local folder, without shuffling.
`workers` is the DataLoader's `num_workers`. No peer verifies what it reads, so none is asked to. Nothing of Reelyard is imported here.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import webdataset
from loader_clock import Batch, cool, first_batch, serve, throughput, waits

KINDS = ("long", "short", "first")
MEMBERS = ("latent", *(f"text_{kind}" for kind in KINDS))
CHUNK_BYTES = 64 << 20
"""Of a chunk or shard of the peers that write their own; the default of each."""

MANY_EPOCHS = 1000
"""More than any step that is sought lies behind; tars are opened only as they come."""


def joined(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: latents stacked, the texts of a kind one behind another with their lengths; tensors, so that workers hand them over uncopied."""
    found = {"latent": torch.from_numpy(np.stack([sample["latent"] for sample in samples]))}
    for kind in KINDS:
        parts = [sample[f"text_{kind}"] for sample in samples]
        found[f"text_{kind}"] = torch.from_numpy(np.concatenate(parts))
        found[f"tokens_{kind}"] = torch.tensor([len(part) for part in parts])
    return found


def decoded(tars: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each sample, for the peers that write them anew."""
    for sample in webdataset.WebDataset(list(tars), shardshuffle=False).decode():
        yield {name: sample[f"{name}.npy"] for name in MEMBERS}


class Peer(Protocol):
    """One loader."""

    def write(self, tars: Sequence[str], folder: Path) -> None:
        """Make what the peer reads, in `folder`."""

    def files(self, tars: Sequence[str], folder: Path) -> list[str]:
        """The files that it reads."""

    def batches(
        self, tars: Sequence[str], folder: Path, *, batch: int, workers: int, epochs: int
    ) -> Iterator[dict[str, Any]]:
        """Batches, in the order of the files."""

    def batches_from(self, tars: Sequence[str], folder: Path, *, batch: int, step: int) -> Iterator[dict[str, Any]]:
        """Batches behind the first `step`, over as many epochs as that takes, in this process."""


class Webdataset:
    """The tars as they are; the default decoder, for the members that are wanted alone."""

    def write(self, tars: Sequence[str], folder: Path) -> None:
        """Nothing."""

    def files(self, tars: Sequence[str], folder: Path) -> list[str]:
        """The tars."""
        return list(tars)

    def batches(
        self, tars: Sequence[str], folder: Path, *, batch: int, workers: int, epochs: int
    ) -> Iterator[dict[str, Any]]:
        """A pipeline of `decode` and `batched`, and WebLoader."""
        dataset = self._pipeline(tars, batch, skip=0, epochs=epochs)
        return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers))

    def batches_from(self, tars: Sequence[str], folder: Path, *, batch: int, step: int) -> Iterator[dict[str, Any]]:
        """There is no state to load: what was seen is read again and thrown away before it is decoded."""
        return iter(self._pipeline(tars, batch, skip=step * batch, epochs=MANY_EPOCHS))

    def _pipeline(self, tars: Sequence[str], batch: int, *, skip: int, epochs: int) -> Any:
        dataset = webdataset.WebDataset(list(tars) * epochs, shardshuffle=False, select_files=_is_array)
        if skip:
            dataset = dataset.slice(skip, None)
        names = [f"{name}.npy" for name in MEMBERS]
        return dataset.decode().to_tuple(*names).map(_by_name).batched(batch, collation_fn=joined, partial=False)


class MosaicmlStreaming:
    """MDS shards, uncompressed, unhashed."""

    def write(self, tars: Sequence[str], folder: Path) -> None:
        """Latents of a fixed shape, texts of any length."""
        from streaming import MDSWriter

        samples = decoded(tars)
        first = next(samples)
        shape = ",".join(map(str, first["latent"].shape))
        columns = {name: f"ndarray:float16:{shape}" if name == "latent" else "ndarray:float16" for name in MEMBERS}
        with MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as writer:
            for sample in itertools.chain([first], samples):
                writer.write(sample)

    def files(self, tars: Sequence[str], folder: Path) -> list[str]:
        """The shards."""
        return [str(path) for path in sorted(folder.glob("*.mds"))]

    def loader(self, folder: Path, *, batch: int, workers: int) -> tuple[Any, Any]:
        """The dataset and its loader."""
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=batch)
        loader = StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=joined, drop_last=True)
        return dataset, loader

    def batches(
        self, tars: Sequence[str], folder: Path, *, batch: int, workers: int, epochs: int
    ) -> Iterator[dict[str, Any]]:
        """StreamingDataset and its loader."""
        _, loader = self.loader(folder, batch=batch, workers=workers)
        return itertools.chain.from_iterable(iter(loader) for _ in range(epochs))

    def batches_from(self, tars: Sequence[str], folder: Path, *, batch: int, step: int) -> Iterator[dict[str, Any]]:
        """The state that a run would have saved there is loaded."""
        dataset, loader = self.loader(folder, batch=batch, workers=0)
        steps_per_epoch = len(dataset) // batch
        epoch, behind = divmod(step, steps_per_epoch)
        dataset.load_state_dict(
            {**dataset.state_dict(0, from_beginning=True), "epoch": epoch, "sample_in_epoch": behind * batch}
        )
        return iter(loader)


class Litdata:
    """Chunks of `optimize`, uncompressed."""

    def write(self, tars: Sequence[str], folder: Path) -> None:
        """One process writes the chunks, in the order of the tars."""
        from litdata import optimize

        optimize(
            fn=_litdata_samples,
            inputs=list(tars),
            output_dir=str(folder),
            chunk_bytes=CHUNK_BYTES,
            num_workers=1,
            keep_data_ordered=True,
            verbose=False,
        )

    def files(self, tars: Sequence[str], folder: Path) -> list[str]:
        """The chunks."""
        return [str(path) for path in sorted(folder.glob("*.bin"))]

    def batches(
        self, tars: Sequence[str], folder: Path, *, batch: int, workers: int, epochs: int
    ) -> Iterator[dict[str, Any]]:
        """StreamingDataset and its loader."""
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(folder), shuffle=False, drop_last=False)
        loader = StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=joined, drop_last=True)
        return itertools.chain.from_iterable(iter(loader) for _ in range(epochs))

    def batches_from(self, tars: Sequence[str], folder: Path, *, batch: int, step: int) -> Iterator[dict[str, Any]]:
        """Not measured."""
        raise ValueError("the cost of a seek is measured of webdataset and mosaicml_streaming alone")


class MegatronEnergon:
    """The same tars, by the index files that `reelyard-plan index --energon` wrote beside them."""

    def write(self, tars: Sequence[str], folder: Path) -> None:
        """Nothing."""

    def files(self, tars: Sequence[str], folder: Path) -> list[str]:
        """The tars."""
        return list(tars)

    def batches(
        self, tars: Sequence[str], folder: Path, *, batch: int, workers: int, epochs: int
    ) -> Iterator[dict[str, Any]]:
        """A crude dataset in the order of the files, a cooker that names the arrays, the plain loader."""
        from megatron.energon import WorkerConfig, get_loader, get_val_dataset

        dataset = get_val_dataset(
            Path(tars[0]).parent,
            split_part="train",
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
            batch_size=batch,
            batch_drop_last=True,
            task_encoder=_energon_task(),
        )
        return itertools.chain.from_iterable(iter(get_loader(dataset)) for _ in range(epochs))

    def batches_from(self, tars: Sequence[str], folder: Path, *, batch: int, step: int) -> Iterator[dict[str, Any]]:
        """Not measured."""
        raise ValueError("the cost of a seek is measured of webdataset and mosaicml_streaming alone")


PEERS: dict[str, Peer] = {
    "webdataset": Webdataset(),
    "mosaicml_streaming": MosaicmlStreaming(),
    "litdata": Litdata(),
    "energon": MegatronEnergon(),
}

PACKAGES = {
    "webdataset": "webdataset",
    "mosaicml_streaming": "streaming",
    "litdata": "litdata",
    "energon": "megatron.energon",
}


def _is_array(name: str) -> bool:
    return name.endswith(".npy")


def _by_name(values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(MEMBERS, values, strict=True))


def _litdata_samples(tar: str) -> Iterator[dict[str, np.ndarray]]:
    yield from decoded([tar])


def _energon_task() -> Any:
    """The task encoder, made here because its classes need the package."""
    from megatron.energon import Cooker, DefaultTaskEncoder, SampleDecoder, stateless

    @stateless
    def named(sample: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {name: sample[f"{name}.npy"] for name in MEMBERS}
        keys = ("__key__", "__restore_key__", "__subflavors__", "__sources__")
        return arrays | {key: sample[key] for key in keys if key in sample}

    class Arrays(DefaultTaskEncoder):
        cookers = (Cooker(named),)
        decoder = SampleDecoder()

        @stateless
        def batch(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            """Alike on all sides."""
            return joined(samples)

    return Arrays()


class Side:
    """One peer on one set: what `serve` calls."""

    def __init__(self, name: str, tars: Sequence[str], folder: Path, batch: int) -> None:
        self._peer, self._tars, self._folder, self._batch = PEERS[name], tars, folder, batch

    def write(self) -> None:
        """Make its files."""
        self._peer.write(self._tars, self._folder)

    def read(self, *, cold: bool, workers: int) -> dict[str, float]:
        """Throughput over the whole set."""
        self._prepare(cold=cold)
        return throughput(lambda: self._batches(workers))

    def waits(self, *, steps: int, step_s: float, busy: bool, workers: int, epochs: int) -> list[float]:
        """The consumer's waits in ms."""
        self._prepare(cold=True)
        return waits(lambda: self._batches(workers, epochs=epochs), steps=steps, step_s=step_s, busy=busy)

    def seek(self, *, step: int) -> dict[str, float]:
        """What it costs to get a batch first that lies behind `step` others."""
        self._prepare(cold=True)
        return first_batch(lambda: self._from(step))

    def digest(self) -> dict[str, int]:
        """Clips and the sum of the crc32 of their arrays, whatever their order."""
        clips = total = 0
        for count, batch in self._batches(0):
            clips += count
            total += sum(zlib.crc32(latent.numpy()) for latent in batch["latent"])
            for kind in KINDS:
                ends = batch[f"tokens_{kind}"].cumsum(0).tolist()
                total += sum(zlib.crc32(part) for part in np.split(batch[f"text_{kind}"].numpy(), ends[:-1]))
        return {"clips": clips, "sum": total}

    def _batches(self, workers: int, *, epochs: int = 1) -> Iterator[Batch]:
        for batch in self._peer.batches(self._tars, self._folder, batch=self._batch, workers=workers, epochs=epochs):
            yield len(batch["latent"]), batch

    def _from(self, step: int) -> Iterator[Batch]:
        for batch in self._peer.batches_from(self._tars, self._folder, batch=self._batch, step=step):
            yield len(batch["latent"]), batch

    def _prepare(self, *, cold: bool) -> None:
        if cold:
            cool(self._peer.files(self._tars, self._folder))


def main() -> None:
    """Serve one peer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("tars", type=Path, help="folder of the set")
    parser.add_argument("folder", type=Path, help="where the peer's own files are or come")
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    importlib.import_module(PACKAGES[options.peer])  # once, before the forks that answer
    tars = [str(path) for path in sorted(options.tars.glob("*.tar"))]
    side = Side(options.peer, tars, options.folder, options.batch)
    serve({"write": side.write, "read": side.read, "waits": side.waits, "seek": side.seek, "digest": side.digest})


if __name__ == "__main__":
    main()
