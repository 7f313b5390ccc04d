"""What a pipeline prints, and shows in a notebook: its parts, with what is known of the values after each."""

from dpcomp.codec.chain import codec_steps
from dpcomp.display import html
from dpcomp.display.text import given_fields, with_comments
from dpcomp.pipeline.fields import PipelineFields
from dpcomp.pipeline.mechanism import noise_stddev_of
from dpcomp.privacy import Unsafe
from dpcomp.privacy.chain import mechanism_steps


def as_code(pipeline: PipelineFields) -> str:
    """Return the call that makes a pipeline, with what is known after each part as a comment."""
    given = dict(given_fields(pipeline))
    lines = [(f"{type(pipeline).__name__}(", "")]
    mechanism = [(step.title, step.words) for step in _mechanism_steps(pipeline)]
    if pipeline.sampling is not None:
        (title, words), *mechanism = mechanism
        lines.append((f"    sampling={title},", words))
    if isinstance(pipeline.mechanism, Unsafe):
        lines.append((f"    mechanism=unsafe({pipeline.mechanism.why!r},", ""))
    else:
        lines.append(("    mechanism=(", ""))
    lines += [*((f"        {title},", words) for title, words in mechanism), ("    ),", "")]
    sent = _state(pipeline, clean=pipeline.trust_model.server_sees_clean)
    codecs: list[tuple[str, html.State]] = [("codec", sent), ("downlink", _state(pipeline, clean=False))]
    for name, state in codecs:
        codec = given.get(name)
        if codec is not None:
            words = {step.title: step.words for step in codec_steps(codec, place="", state=state)}
            parts = [(f"{slot}={part!r}", words.get(repr(part), "")) for slot, part in given_fields(codec)]
            lines.append((f"    {name}={type(codec).__name__}(", ""))
            lines += [*((f"        {code},", known) for code, known in parts), ("    ),", "")]
    others = given.keys() - {"sampling", "mechanism", "codec", "downlink"}
    lines += [(f"    {name}={value!r},", "") for name, value in given.items() if name in others]
    return with_comments([*lines, (")", "")])


def as_html(pipeline: PipelineFields) -> str:
    """Return a pipeline as a block of HTML: its steps from left to right, and what else is set."""
    notes = [(name, str(value)) for name, value in given_fields(pipeline) if name in ("feedback", "unit", "trust")]
    why = [("no guarantee", pipeline.mechanism.why)] if isinstance(pipeline.mechanism, Unsafe) else []
    return html.panel(type(pipeline).__name__, html.chain(steps_of(pipeline)), html.facts((*why, *notes)))


def steps_of(pipeline: PipelineFields) -> list[html.Step]:
    """Return the steps of an update, from the sample to the broadcast, with what is known after each."""
    steps, clean = _mechanism_steps(pipeline), pipeline.trust_model.server_sees_clean
    sent = codec_steps(pipeline.codec, place="client, update", state=_state(pipeline, clean=clean))
    downlink = pipeline.codec if pipeline.downlink is None else pipeline.downlink
    down = codec_steps(downlink, place="server, broadcast", state=_state(pipeline, clean=False))
    if not clean:
        return [*steps, *sent, *down]
    # The server draws the noise on what it has decoded.
    noise = [step for step in steps if step.place == "server" and step.state != "clean"]
    before = [step for step in steps if step not in noise]
    return [*before, *sent, *noise, *down]


def _mechanism_steps(pipeline: PipelineFields) -> list[html.Step]:
    stddev, unsafe = noise_stddev_of(pipeline), isinstance(pipeline.mechanism, Unsafe)
    return mechanism_steps(pipeline.stages, pipeline.sampling, pipeline.trust_model, stddev=stddev, unsafe=unsafe)


def _state(pipeline: PipelineFields, *, clean: bool) -> html.State:
    return "clean" if clean else "none" if isinstance(pipeline.mechanism, Unsafe) else "released"
