"""The command line, `spatialprobes`: runs and figures, the lab, a chat.

Each command imports what it needs when it is called, so that help is quick and works where torch is not installed. A fault of the
user's is one clear line and exit status 2 (`--debug` shows where it came from); a run that fails gives 1. Knows no models.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .seeds import SEEDS


class OneLineErrors(TyperGroup):
    """Shows whatever goes wrong in a command as one line and exits with 2; with `--debug`, as Python does."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            ours = not (
                isinstance(error, typer.Abort) or hasattr(error, "exit_code")
            )  # the others are typer's own and say enough
            if ctx.params.get("debug") or not ours:
                raise
            name = "" if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: "
            typer.echo(f"spatialprobes: {name}{error}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Where things are in vision-language models: the runs, figures and models of this companion.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Suite = Annotated[str, typer.Option(help="Which runs: lab (minutes on a laptop, no download) or full (real checkpoints).")]
Only = Annotated[
    str, typer.Option(help="Only runs whose names match this glob, as 'swap-*', and what they need.", show_default="all")
]
OFF = {"show_default": "off"}
SEED = {"min": 0, "max": SEEDS - 1}


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from, with a traceback.", **OFF)] = False,
) -> None:
    """Options for all commands stand before the command's name."""


@app.command()
def figures(
    suite: Suite = "lab",
    only: Only = "",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time; here the threads are divided among them.", show_default="2, or the profile's"),
    ] = None,
    profile: Annotated[str, typer.Option(help="Where to run: a folder of profiles/, local or slurm.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due and why, and do nothing.", **OFF)] = False,
    keep_going: Annotated[bool, typer.Option(help="When a run fails, still do those that don't need it.")] = True,
) -> None:
    """Execute the runs that are due and build the gallery, figures/index.html."""
    from . import paths
    from .due import statuses
    from .runs import load, select

    root = paths.root()
    plan = load(root)
    names = select(plan, suite, only)
    found = statuses(root, plan)
    due = [name for name in names if found[name].state != "complete"]
    for name in names:
        if name in due or dry_run:
            typer.echo(f"{name}: {'due' if name in due else 'complete'}{f', {found[name].why}' if found[name].why else ''}")
    typer.echo(f"{len(due)} of {len(names)} runs due")
    if dry_run:
        return
    if due:
        from .execute import execute_due

        found = execute_due(names, root, jobs, profile, keep_going)
    failed = [name for name in names if found[name].state != "complete"]
    for name in failed:
        log = paths.run_folder(name, root) / "failed" / "log.txt"
        where = f" (log: {log.relative_to(root)})" if found[name].state == "failed" else ""
        typer.echo(f"NOT COMPLETE {name}: {found[name].why}{where}", err=True)
    done = f"{len(names) - len(failed)} of {len(names)} runs complete."
    try:
        done += f" Gallery: {_gallery(root)}"
    except OSError as error:
        if not failed:
            raise
        typer.echo(f"spatialprobes: the gallery can't be written: {error}", err=True)
    typer.echo(done)
    if failed:
        raise typer.Exit(1)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A run of papermill_runs.yaml.")],
    expect: Annotated[str, typer.Option(help="Refuse to run if the run's hash is another.", show_default="any")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also if its results are complete.", **OFF)] = False,
) -> None:
    """Execute one run; what it needs must be complete."""
    from .execute import RunFailed, execute

    typer.echo(f"{name}: running")
    start = time.monotonic()
    try:
        done = execute(name, expect=expect, force=force)
    except RunFailed as error:
        log = "".join(f"  | {line}\n" for line in error.log.splitlines())
        where = f"What it left: {error.folder}" if error.folder else ""
        typer.echo(f"FAILED {error}\n{log}{where}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{name}: " + (f"done in {time.monotonic() - start:.0f} s" if done else "complete already"))


@app.command()
def runs(
    suite: Annotated[str, typer.Option(help="Only this suite: lab or full.", show_default="both")] = "",
) -> None:
    """Check papermill_runs.yaml and list the runs: name, suite, notebook, where it stands and why."""
    from . import paths
    from .due import statuses
    from .runs import load, select

    root = paths.root()
    plan = load(root)
    found = statuses(root, plan)
    rows = [(name, plan[name].suite, plan[name].notebook, found[name].state, found[name].why) for name in select(plan, suite)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        typer.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())


@app.command()
def params(
    notebook: Annotated[str, typer.Argument(help="A notebook's name, as 00_quickstart, or its file.")],
) -> None:
    """Show a notebook's parameters: name, type, default, meaning."""
    from . import paths
    from .params import nearest, read_parameters

    file = Path(notebook) if notebook.endswith(".ipynb") else paths.root() / "notebooks" / f"{notebook}.ipynb"
    if not file.is_file():
        names = sorted(path.stem for path in (paths.root() / "notebooks").glob("*.ipynb"))
        raise ValueError(f"unknown notebook {notebook!r}{nearest(notebook, names)}; there are: {', '.join(names) or 'none'}")
    for parameter in read_parameters(file).values():
        typer.echo(f"{parameter.name}: {parameter.annotation} = {parameter.default!r}  # {parameter.meaning}")


@app.command()
def redraw() -> None:
    """Draw every figure of every run again from its saved tables alone, and build the gallery."""
    from . import paths, plots

    plots.redraw(paths.root())
    typer.echo(f"Gallery: {_gallery(paths.root())}")


@app.command()
def gallery() -> None:
    """Build figures/index.html from what the runs left: a page that opens from disk."""
    from . import paths

    typer.echo(f"Gallery: {_gallery(paths.root())}")


@app.command()
def readme() -> None:
    """Bring the README's claims table and figures up to date from the complete runs."""
    from . import paths
    from .readme import refresh

    for path in refresh(paths.root()):
        typer.echo(str(path.relative_to(paths.root())))


@app.command()
def lab(
    model: Annotated[list[str], typer.Option(help="Only this model and its ancestors; repeat it for several.")] = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder for the models.", show_default="data/lab")] = "",
    again: Annotated[bool, typer.Option("--again", help="Also models that are there already.", **OFF)] = False,
) -> None:
    """Train the lab's models that are missing, from nothing; goes on where it was stopped, uses a GPU when there is one."""
    from . import paths

    folder = Path(out) if out else paths.lab_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # before hours of training, not after
        raise ValueError(f"--out {str(folder)!r} is no folder and can't become one: {error.strerror}") from error
    from .lab import train_zoo

    for made in train_zoo(tuple(model), folder, again=again):
        typer.echo(str(made))


published = typer.Typer(no_args_is_help=True, help="Published results, read and recomputed.")
app.add_typer(published, name="published")


@published.command("vlm-connectors")
def vlm_connectors(
    source: Annotated[str, typer.Argument(help="A checkout of the connector study's repository, or a run in its layout.")],
    out: Annotated[str, typer.Option(help="Folder for tables, figures and claims.")] = "vlm-connectors-audit",
    seed: Annotated[int, typer.Option(**SEED, help="Of the intervals' draws.")] = 0,
) -> None:
    """Write the connector study's tables and figures from its own files, and what they left out; list what is missing."""
    from .audit import audit

    made = audit(source, out, seed=seed)
    for row in made.missing.to_dict("records"):
        where = row["file"] or "/".join(part for part in (row["kind"], row["model"], row["folder"]) if part)
        typer.echo(f"{row['status']} {where}: {row['detail']}")
    verdicts = [one.verdict for one in made.claims]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("holds", "fails", "inconclusive"))
    typer.echo(
        f"{', '.join(made.models)}: {len(made.tables)} tables, {len(made.drawn)} figures, {len(verdicts)} claims ({counts})"
    )
    typer.echo(f"Written to {out}; what is missing: {Path(out) / 'missing.csv'}")


@app.command()
def chat(
    image_file: Annotated[str, typer.Option(help="The picture: a file, or an http(s) address.")],
    model: Annotated[
        str, typer.Option("--model", "--model-path", help="A lab model, a folder, or a hub id as llava-hf/llava-1.5-7b-hf.")
    ] = "lab-llava",
    permute: Annotated[
        bool, typer.Option("--permute", "--permutation", help="Permute the picture's vision tokens, by --seed.", **OFF)
    ] = False,
    load_4bit: Annotated[
        bool, typer.Option("--load-4bit", help="The language model in 4 bit; needs bitsandbytes.", **OFF)
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest word; above 0 words are drawn.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    seed: Annotated[int, typer.Option(**SEED, help="Of the permutation and of drawn words.")] = 0,
    history: Annotated[
        bool, typer.Option("--history", help="Keep earlier turns in the prompt (lab models know single turns only).", **OFF)
    ] = False,
) -> None:
    """Ask a model about a picture: type questions, or pipe them in, one a line. "exit" or the end of the input leaves."""
    import sys

    from .images import open_image

    picture = open_image(image_file)  # before the model, which takes longer to load
    from .chat import converse, typed
    from .vlm import VLM

    vlm = VLM.load(model, quantize="4bit" if load_4bit else None)
    options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed, "history": history}
    converse(
        vlm,
        picture,
        typed(echo=not sys.stdin.isatty()),
        lambda text: typer.echo(text, nl=False),
        permute=permute,
        **options,
    )


def _gallery(root: Path) -> Path:
    """Build the gallery; where it is."""
    from .gallery import build

    build(root)
    return root / "figures" / "index.html"
