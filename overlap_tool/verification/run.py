"""`verify`: every check on one model, gathered in a certificate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool import checkpoint
from overlap_tool.checkpoint.artefact import wrapped_settings
from overlap_tool.errors import ContainerError, OptionError, OverlapToolError
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.copying import copied
from overlap_tool.graph.example import Example, Given
from overlap_tool.graph.standing_in import stands_in
from overlap_tool.graph.trace import fitted
from overlap_tool.kernels import fallbacks, ops_of_the_library
from overlap_tool.kernels.arithmetic import VERSION
from overlap_tool.models import coded
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.models.coding_tables import complete_tables
from overlap_tool.models.stages import Stage, Survey, survey
from overlap_tool.planning.analysis import StageOverlap
from overlap_tool.planning.choose import SIDES, Shape, StagePlan, plan_stage
from overlap_tool.planning.usual import as_taken, square, usual_tile
from overlap_tool.settings import ORDERS, SCHEDULES, Engine, Order, Schedule, Settings, Size
from overlap_tool.verification import equality, images, machine
from overlap_tool.verification.ablation import ablate as ablate_model
from overlap_tool.verification.certificate import MODEL, Certificate, Check, PlanRecord
from overlap_tool.verification.elsewhere import Elsewhere
from overlap_tool.verification.images import Image
from overlap_tool.verification.minimality import check_minimality
from overlap_tool.verification.observing import ALONE
from overlap_tool.verification.witnesses import map_digests, stream_digest
from overlap_tool.wrapping.loops import order_of
from overlap_tool.wrapping.retrofit import rewrap, settings_in, wrap

TILE_OF_BLOCKS = 64
"""The tile for the networks of a closed loop, whose whole-image reference is slow."""


@dataclass(frozen=True)
class _Subject:
    """What is verified: an untouched model, its stages, and the settings to tile them with."""

    model: nn.Module
    found: Survey
    ways: tuple[Settings, ...]
    stage_ways: tuple[Settings, ...]
    """The same, except for a closed loop: its networks run in tiles, the loop itself block by block."""
    whole: bool
    """Whether the whole model is checked, too, and not only one stage of it."""
    ablate: bool
    example: Example | None
    """How the model is called, if not with an image alone."""
    own_images: bool
    """Whether the images are the user's files, none of them seeded."""
    progress: Callable[[str], None]

    def run(self, model: nn.Module, image: Tensor, kernels: Engine = "exact") -> equality.Run:
        """What this model, or a tiled one made of it, returns."""
        return equality.run_model(model, image, kernels=kernels, example=self.example)

    def compress(self, model: nn.Module, image: Tensor, kernels: Engine = "exact") -> equality.Coded:
        return equality.compress(model, image, kernels, self.example)

    def name_of(self, stage: Stage) -> str:
        return stage.name or type(self.model).__name__


def verify(
    model: nn.Module | str | os.PathLike[str],
    *,
    tiles: Sequence[int | Size | tuple[int, int]] | None = None,
    schedules: Sequence[Schedule | Order] | None = None,
    size: Size | tuple[int, int] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    stage: str | None = None,
    uniform: bool = False,
    ablate: bool = False,
    device: str = "cpu",
    against: str | os.PathLike[str] | None = None,
    architecture: str | None = None,
    model_class: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    example: Given = None,
    method: str | None = None,
    trust: bool = False,
    progress: Callable[[str], None] = lambda doing: None,
) -> Certificate:
    """Compare a tiled model with the untouched one, bit for bit, and check that its overlaps are minimal.

    `model` is a module, the path of a checkpoint or of a wrapped model, or `zoo:NAME`. `tiles` are in pixels
    of the image or samples of a sound; by default those of `wrap`, or those that the model was wrapped with.
    Both `schedules` are checked unless one is given; `uniform` means independent tiles of one shape. A closed
    loop is checked block by block, in both orders, and its networks alone in tiles of 64.

    Without `images`, one is made up: of `size`, or large enough for every check; a volume or a sound if the
    model takes that. Both models run under `exact_kernels()`; the difference to PyTorch's own kernels is
    noted. `against` is a certificate of another machine, whose digests are compared with those of this one.
    `example` and `method` describe the call of a model that takes more than an image, as for `wrap`; the file
    of a wrapped model contains them.

    >>> verify(nn.Conv2d(3, 3, 5, padding=2).eval(), tiles=[16], size=(48, 40)).holds
    True
    """
    place = machine.find_device(device)
    elsewhere = None if against is None else Elsewhere.read(against)
    own = None if isinstance(model, nn.Module) else wrapped_settings(model)
    settings = None if own is None else settings_in(own, str(model))
    if isinstance(model, nn.Module):
        if stands_in(model):
            raise OptionError(
                type(model).__name__,
                "is wrapped already",
                "Give the model itself, or call overlap_tool.unwrap",
            )
        # a copy, since CDFs may be computed and the device may change
        loaded = checkpoint.Loaded.of(copied(model).eval())
    else:
        loaded = checkpoint.load_checkpoint(
            model, architecture=architecture, model_class=model_class, kwargs=kwargs, trust=trust
        )
    call = Example.of(example, method) or Example.of_data(loaded.example)
    found = survey(loaded.model, only=stage, example=call)
    if found.loop is not None:
        ways = _orders(found.loop, schedules, settings)
        stage_ways = _ways(tiles, ["tiles"], uniform, None, TILE_OF_BLOCKS)
    else:
        scaled = [(stage.network, stage.input_scale) for stage in found.stages]
        ways = stage_ways = tuple(
            replace(way, tile=way.tile and as_taken(way.tile, found.stages[0].network))
            for way in _ways(tiles, schedules, uniform, settings, usual_tile(scaled))
        )
    pictures = _pictures(found, stage_ways, size, images)
    if elsewhere is not None:
        elsewhere.refuse_unlike(loaded.weights_sha256, [picture.record for picture in pictures])
    loaded.model.to(place)
    complete_tables(loaded.model, loaded.source or loaded.architecture)
    subject = _Subject(
        loaded.model, found, ways, stage_ways, stage is None, ablate, call, bool(images), progress
    )
    with torch.no_grad(), fallbacks() as slow, ops_of_the_library() as library_ops:
        results = [_verify_on(subject, picture, place) for picture in pictures]
    plans = tuple(plan for of_image, _, _ in results for plan in of_image)
    records = tuple(
        replace(picture.record, digests=digests)
        for picture, (_, _, digests) in zip(pictures, results, strict=True)
    )
    if all(plan.tiles == 1 for plan in plans):
        raise OptionError(
            f"tiles={[tuple(plan.tile) for plan in plans[:1]]}",
            "is the whole image in every stage, so that there is nothing to verify",
            "Give a smaller `tiles`, or a larger `size` or `images`",
        )
    return Certificate(
        source=loaded.source,
        architecture=loaded.architecture,
        arguments=dict(loaded.arguments),
        weights_sha256=loaded.weights_sha256,
        engine="exact",
        arithmetic=VERSION,
        machine=machine.describe(place),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        images=records,
        plans=plans,
        checks=(
            *(check for _, checks, _ in results for check in checks),
            *(elsewhere.compare(record) for record in records if elsewhere is not None),
        ),
        fallbacks=tuple(slow),
        library_ops=tuple(library_ops),
        untiled=found.untiled,
        call="" if call is None else str(call),
    )


def _orders(
    model: ClosedLoop, schedules: Sequence[Schedule | Order] | None, own: Settings | None
) -> tuple[Settings, ...]:
    """The settings of a closed loop, whose tiles are its blocks; "both" schedules are its two orders."""
    if own is not None and schedules is None:
        return (replace(own, schedule=order_of(own)),)
    orders = ORDERS if schedules is None or tuple(schedules) == SCHEDULES else tuple(schedules)
    return tuple(Settings(tile=Size(model.block, model.block), schedule=order) for order in orders)


def _ways(
    tiles: Sequence[int | Size | tuple[int, int]] | None,
    schedules: Sequence[Schedule | Order] | None,
    uniform: bool,
    own: Settings | None,
    default: int | Size,
) -> tuple[Settings, ...]:
    """The settings to verify: those asked for, else those of a wrapped model, else both schedules and a
    default tile."""
    if own is not None and own.engine != "exact":
        raise OptionError(
            'engine="stock"',
            "this model was wrapped to compute with the library's kernels, of which no equality is claimed",
            'Wrap it without `engine="stock"`, or verify the checkpoint that it was made from',
        )
    if uniform and schedules is None:
        schedules = ["tiles"]
    if tiles is None and own is not None:
        if schedules is None:
            return (own,)
        return tuple(
            replace(
                own,
                schedule=schedule,
                batch=own.batch if schedule == "tiles" else 1,
                uniform=uniform or (own.uniform and schedule == "tiles"),
            )
            for schedule in schedules
        )
    ways = (
        Settings(tile=Size.of_tile(tile, "tiles"), schedule=schedule, uniform=uniform)
        for tile in tiles or [default]
        for schedule in schedules or SCHEDULES
    )
    return tuple(dict.fromkeys(ways))


def _pictures(
    found: Survey,
    ways: Sequence[Settings],
    size: Size | tuple[int, int] | None,
    paths: Sequence[str | os.PathLike[str]],
) -> list[Image]:
    multiple = images.multiple(found)
    layout = next((stage.network.ops[0].layout for stage in found.stages if stage.name == ""), None)
    if layout is None or layout.kind not in ("volume", "sound"):
        layout = Layout.of_map(found.channels)
    if paths:
        if size is not None:
            raise OptionError(
                f"size={tuple(size)}", "`images` have sizes of their own", "Give one of the two"
            )
        return [images.read(path, layout, multiple) for path in paths]
    if size is None:
        largest = square(SIDES[0], [(stage.network, stage.input_scale) for stage in found.stages])
        size = images.telling_size(found.stages, [way.tile or largest for way in ways], multiple)
    return [images.seeded(Size.of(size, "size"), layout, multiple)]


def _verify_on(
    subject: _Subject, picture: Image, place: torch.device
) -> tuple[list[PlanRecord], list[Check], dict[str, str]]:
    dtype = next((p.dtype for p in subject.model.parameters() if p.is_floating_point()), torch.float32)
    image = picture.values.to(place, dtype)
    blank = Check("", MODEL, picture.record.name, "skipped")
    subject.progress(f"{blank.image}: the untouched model")
    exact = equality.run_model(subject.model, image, subject.found.stages, example=subject.example)
    digests = map_digests(
        {
            subject.name_of(stage) if name == ALONE else f"{subject.name_of(stage)}.{name}": values
            for stage in subject.found.stages
            if stage.name in exact.seen
            for name, values in exact.seen[stage.name].outputs.items()
        }
    )
    plans: list[PlanRecord] = []
    checks: list[Check] = []
    for stage in subject.found.stages:
        for record, check in _stage_checks(subject, stage, exact, blank):
            plans += [] if record is None else [record]
            checks.append(check)
    if subject.whole:
        stages_hold = all(check.status != "failed" for check in checks if check.name == "stage-equality")
        subject.progress(f"{blank.image}: the untouched model's bitstream")
        written = subject.compress(subject.model, image)
        digests |= map_digests(exact.outputs)
        digests |= {} if written.stream is None else {"strings": stream_digest(written.stream)}
        checks += _model_checks(subject, image, exact, written, stages_hold, blank)
    if subject.ablate:
        for settings in dict.fromkeys(_independent(way) for way in subject.stage_ways):
            subject.progress(f"{blank.image}: overlaps one sample too small")
            tiled = replace(blank, tile=settings.tile)
            checks += ablate_model(
                subject.model, subject.found.stages, settings, image, exact, tiled, subject.example
            )
    return plans, checks, digests


def _stage_checks(
    subject: _Subject, stage: Stage, exact: equality.Run, blank: Check
) -> Iterator[tuple[PlanRecord | None, Check]]:
    """Equality for every setting, and minimality for every tile."""
    name = subject.name_of(stage)
    blank = replace(blank, stage=name)
    seen = exact.seen.get(stage.name)
    reason = ""
    if seen is None:
        reason = "the model's forward does not call it"
    elif not _tiles_take(stage, seen.input):
        reason = "its input is too small for tiles: the model's own code runs"
    if seen is None or reason:
        yield None, replace(blank, name="stage-equality", message=reason)
        return
    images, *_, rows, columns = seen.input.shape
    whole = Shape(images, rows, columns, seen.input.element_size())
    tiled: dict[Size, StagePlan] = {}
    runs = True
    for way in subject.stage_ways:
        plan = plan_stage(name, stage.network, stage.input_scale, whole, way)
        of_way = replace(blank, tile=plan.tile, schedule=plan.schedule)
        subject.progress(f"{blank.image}: {name}, tile {plan.tile}, {plan.schedule}")
        check = equality.check_stage(plan, seen, way.batch, of_way)
        runs = runs and "differing" in check.figures
        yield _plan_record(of_way, plan), check
        if plan.tile not in tiled:
            alone = replace(_independent(way), tile=plan.tile, memory=None)
            tiled[plan.tile] = plan_stage(name, stage.network, stage.input_scale, whole, alone)
    for tile, plan in tiled.items() if runs else ():
        subject.progress(f"{blank.image}: {name}, tile {tile}, is it minimal")
        for check in check_minimality(plan, seen, replace(blank, tile=tile)):
            yield None, check


def _tiles_take(stage: Stage, given: Tensor) -> bool:
    images, *_, rows, columns = given.shape
    return fitted(stage.network, images, rows, columns).accepts(rows, columns)


def _plan_record(check: Check, plan: StagePlan) -> PlanRecord:
    sides = StageOverlap.of(plan.network)
    return PlanRecord(
        stage=check.stage,
        image=check.image,
        tile=plan.tile,
        schedule=plan.schedule,
        passes=plan.passes,
        tiles=plan.tiles,
        left=sides.left,
        right=sides.right,
        top=sides.top,
        bottom=sides.bottom,
        macs=plan.macs,
        working_bytes=plan.working_bytes,
        store_bytes=plan.store_bytes,
        peak_bytes=plan.peak_bytes,
        uniform=plan.uniform,
    )


def _model_checks(
    subject: _Subject,
    image: Tensor,
    exact: equality.Run,
    written: equality.Coded,
    stages_hold: bool,
    blank: Check,
) -> list[Check]:
    """What the model as a whole returns: outputs, symbols, bitstreams, decoded images."""
    model, progress = subject.model, subject.progress
    pixels = image[:, 0].numel()
    progress(f"{blank.image}: the same with the library's kernels")
    stock = subject.run(model, image, "stock"), subject.compress(model, image, "stock")
    checks = [
        equality.check_latents(exact, written, subject.own_images, blank),
        equality.note_difference("exact-against-stock", (exact, written), stock, blank),
    ]
    tiled: list[tuple[Settings, Check]] = []
    streams = [] if written.stream is None else [written.stream]
    wrapped = wrap(model, example=subject.example)
    for way in subject.ways:
        of_way = replace(blank, tile=way.tile, schedule=way.schedule)
        progress(f"{blank.image}: the model in {way}")
        rewrap(wrapped, way)
        try:
            found = subject.run(wrapped, image)
        except Exception as error:
            checks.append(equality.raised(replace(of_way, name="model-equality"), error))
            continue
        checks += equality.check_outputs(found, exact, stages_hold, of_way)
        by_tiles = subject.compress(wrapped, image)
        checks.append(equality.check_bitstream(by_tiles, written, pixels, of_way))
        if by_tiles.stream is not None and not any(coded.same(by_tiles.stream, one) for one in streams):
            streams.append(by_tiles.stream)
        tiled.append((way, of_way))
        rewrap(wrapped, replace(way, engine="stock"))
        noted = subject.run(wrapped, image, "stock"), subject.compress(wrapped, image, "stock")
        checks.append(equality.note_difference("stock-tiles-against-stock", noted, stock, of_way))
    if not streams:
        reason = written.refusal
        return [*checks, *(replace(each, name="decoding", message=reason) for _, each in tiled)]
    progress(f"{blank.image}: the untouched model decodes")
    try:
        decoded = [equality.decompress(model, stream) for stream in streams]
    except Exception as error:  # the model's code may raise anything, on streams of wrong tiles, too
        if isinstance(error, OverlapToolError) and not isinstance(error, ContainerError):
            raise
        reason = equality.why_not_decoded(error)
        return [*checks, *(replace(each, name="decoding", message=reason) for _, each in tiled)]
    for way, of_way in tiled:
        progress(f"{blank.image}: tiles decode")
        rewrap(wrapped, way)
        checks.append(equality.check_decoding(wrapped, streams, decoded, of_way))
    return checks


def _independent(way: Settings) -> Settings:
    """The same tiles, independent of one another, each with exactly the overlap that it needs."""
    return replace(way, schedule="tiles", batch=1, uniform=False)
