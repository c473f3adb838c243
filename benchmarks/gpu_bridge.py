"""The bridge: training and sampling, beside the released way."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from bbdm.data import layout_of
from bbdm.model import BridgeModel, SamplerSettings
from bbdm.noise import seeded_normal
from benchmarks.gpu_setup import Bench
from benchmarks.measuring import Row, forget_peak, operations, peak_memory, size_of, time_steps
from benchmarks.released import bridge_step, released_networks
from processor.update import Update
from utils.device import find_precision


@dataclass(frozen=True)
class BridgeWay:
    """How a bridge is run.

    Attributes:
        name: of the row; its first word is the type of the matrix rate that it is a share of.
        amp: SOLVER.AMP.
        released: the released way.
        kept: latents are kept (training).
        mode: of torch.compile.
    """

    name: str
    amp: str
    released: bool = False
    kept: bool = False
    mode: str | None = None

    def layout(self, device: torch.device) -> torch.memory_format:
        """Of pictures and convolutions; sets whether those may round to TF32, too."""
        torch.backends.cudnn.allow_tf32 = self.amp == "tf32"
        return torch.contiguous_format if self.released else layout_of(find_precision(self.amp, device))


RELEASED = BridgeWay("released: float32, TF32", "tf32", released=True)


def bridge_training(bench: Bench, config: str, job: str, ways: Sequence[BridgeWay]) -> Iterator[Row]:
    """A training step of batch 8 with its share of the optimiser's step."""
    size, work, device = 2 if bench.tiny else 8, 0, bench.device
    for way in ways:
        layout = way.layout(device)
        model = bench.bridge(config, way.amp, layout=layout, training=True)
        optical, sar = bench.pictures(size, layout), bench.pictures(size, layout)
        if way.kept:
            optical, sar, model = model.encode(optical, "cond"), model.encode(sar, "ori"), model.between_latents()
        if way.mode:
            model.network.compile(mode=way.mode)
        with released_networks() if way.released else nullcontext():
            forget_peak(device)
            step = bridge_step(model, accumulation=4) if way.released else our_bridge_step(model, device)
            start = time.perf_counter()
            try:
                step(optical, sar)
                first = time.perf_counter() - start
                seconds = bench.steps(partial(step, optical, sar), count=8, warm=3)
            except torch.OutOfMemoryError:
                yield Row(job, way.name, None, size, note="out of memory")
                continue
            # The first stage's work is no share of a step that does without it.
            work = work or (operations(partial(step, optical, sar)) if way.kept or model.first_stage is None else 0)
        share = bench.share(work, seconds, way.name) if work else None
        note = f"first call {first:.1f} s" if way.mode else size_of(model.network)
        yield Row(job, way.name, seconds, size, share, peak_memory(device), note=note)
        torch._dynamo.reset()


def our_bridge_step(model: BridgeModel, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A training step as `bbdm.train` takes it."""
    optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-4, fused=device.type == "cuda")
    update = Update(model.network, [optimizer], model.precision.scaler(), accumulation=4)

    def step(optical: torch.Tensor, sar: torch.Tensor) -> None:
        with update.passes():
            update(model.random_loss(optical, sar))

    return step


def f4_training(bench: Bench) -> Iterator[Row]:
    """The latent bridge f4."""
    plain = [BridgeWay("float32", "off"), BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    kept = [BridgeWay("TF32 kept latents", "tf32", kept=True), BridgeWay("bf16 kept latents", "bf16", kept=True)]
    graphs = [] if bench.tiny else [BridgeWay("bf16 kept latents, compiled", "bf16", kept=True, mode="default")]
    yield from bridge_training(bench, "bbdm_hoss_f4.yml", "f4 bridge training step", [RELEASED, *plain, *kept, *graphs])


def pixel_training(bench: Bench) -> Iterator[Row]:
    """The pixel bridge."""
    ways = [RELEASED, BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    yield from bridge_training(bench, "bbdm_hoss.yml", "pixel bridge training step, 256", ways)


def bridge_sampling(
    bench: Bench, config: str, job: str, batch: int, calls: Sequence[int], ways: Sequence[BridgeWay]
) -> Iterator[Row]:
    """Samples of pictures that are on the device already; what would take longer than 12 s is not run."""
    device, work = bench.device, 0
    for way in ways:
        layout = way.layout(device)
        model, optical = bench.bridge(config, way.amp, layout=layout), bench.pictures(batch, layout)
        if way.mode:
            model.network.compile(mode=way.mode)
        each = first = 0.0
        for steps in calls:
            title = f"{job}, batch {batch}, {steps} calls"
            if each * steps > 12.0 or bench.left < 30:
                yield Row(
                    title,
                    way.name,
                    None,
                    batch,
                    note=f"not run: about {each * steps:.0f} s" if each else "not run: no time left",
                )
                continue
            with released_networks() if way.released else nullcontext():
                first = first or once(partial(draw_samples, model, optical, 3), device)
                forget_peak(device)
                seconds = once(partial(draw_samples, model, optical, steps), device)
                arguments = one_call(model, optical)
                work = work or operations(partial(model.predict, *arguments))
            each = seconds / steps
            note = f"first call {first:.1f} s" if way.mode else ""
            yield Row(
                title, way.name, seconds, batch, bench.share(work * steps, seconds, way.name), peak_memory(device), note=note
            )
        torch._dynamo.reset()


def draw_samples(model: BridgeModel, optical: torch.Tensor, steps: int) -> torch.Tensor:
    """One sample of each picture, with noise of its own seed."""
    seeds = torch.arange(len(optical), device=optical.device)
    noise = partial(seeded_normal, seeds, shape=model.state_shape(optical)[1:])
    return model.sample(optical, SamplerSettings(name="released", steps=steps), noise)


def once(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    return time_steps(run, device, count=1, warm=0)


def one_call(model: BridgeModel, optical: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Arguments of a call of the network."""
    y = model.encode(optical, "cond")
    return y, torch.zeros(len(y), dtype=torch.long, device=y.device), model.context(optical, y)


def f4_sampling(bench: Bench) -> Iterator[Row]:
    """The latent bridge f4."""
    ways = [RELEASED, BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    for batch in (1, 2) if bench.tiny else (1, 16, 64):
        graphs = [] if bench.tiny or batch == 64 else [BridgeWay("bf16 graphs", "bf16", mode="reduce-overhead")]
        compiled = [BridgeWay("bf16 compiled", "bf16", mode="default")] if batch == 64 else []
        calls = (4,) if bench.tiny else (20, 200)
        yield from bridge_sampling(bench, "bbdm_hoss_f4.yml", "f4 sampling", batch, calls, [*ways, *graphs, *compiled])


def pixel_sampling(bench: Bench) -> Iterator[Row]:
    """The pixel bridge."""
    ways = [RELEASED, BridgeWay("TF32", "tf32"), BridgeWay("bf16", "bf16")]
    batch, calls = (2, (4,)) if bench.tiny else (4, (20,))
    yield from bridge_sampling(bench, "bbdm_hoss.yml", "pixel sampling, 256", batch, calls, ways)
