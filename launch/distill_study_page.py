"""A study of students as a page of markdown and a picture: what is kept of the teacher against how fast it is."""

from pathlib import Path

from jaxscale.observe.charts import picture, scatter_chart
from jaxscale.observe.host import cpu_model, num_cores
from retrieval.towers.distillation.study import MANY, MEASURES, Study, TowerFigures

PICTURE = "study.svg"

_HEAD = """\
# Students of one teacher

![{measure} kept against queries per second]({picture})

{num_queries:,} queries of the split {split} search the {searched} that the teacher's document tower made; no student
has touched it. *Kept* is the student's share of the teacher's mean, *p* that of a paired randomisation test against
the teacher, two-sided.

Speed is from text to vector, on {num_timed} of the queries, all towers by turns in one run: p50 and p99 of one query
by itself, and queries per second by the median time of {many} at once. {compute_dtype}, mesh {mesh}, {num_cores} cores
of {cpu}. What else the machine did meanwhile shows in p99.

"""


def write_study(folder: Path, study: Study) -> None:
    """Writes study.md and study.svg, each replaced as a whole."""
    for name, text in (("study.md", page(study)), (PICTURE, drawing(study))):
        draft = folder / f"{name}.tmp"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)


def page(study: Study) -> str:
    """The page of markdown."""
    kept = [column for measure in MEASURES for column in (measure, "kept", "p")]
    columns = ("tower", "layers", "parameters", "in layers", *kept, "p50 ms", "p99 ms", f"queries/s at {MANY}")
    head = _HEAD.format(
        measure=MEASURES[0],
        picture=PICTURE,
        num_queries=study.num_queries,
        split=study.split,
        searched=study.searched,
        num_timed=study.num_timed,
        many=MANY,
        compute_dtype=study.compute_dtype,
        mesh=study.mesh,
        num_cores=num_cores(),
        cpu=cpu_model(),
    )
    rows = [columns, ("---", *["---:"] * (len(columns) - 1)), *map(_cells, study.towers)]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def drawing(study: Study) -> str:
    """The picture."""
    measure = MEASURES[0]
    points = [(tower.name, tower.speed.queries_per_s, tower.kept[measure].share) for tower in study.towers]
    words = "; ".join(f"{name} keeps {kept:.1%} at {speed:,.0f} queries per second" for name, speed, kept in points)
    return picture(
        scatter_chart(
            points,
            x_label=f"queries per second, {MANY} at once",
            y_label=f"{measure}, share of the teacher's",
            description=f"{measure} kept against speed: {words}.",
        )
    )


def _cells(tower: TowerFigures) -> tuple[str, ...]:
    kept = []
    for measure in MEASURES:
        found = tower.kept[measure]
        p = "" if tower.name == "teacher" else f"{found.p:.4f}"
        kept += [f"{found.value:.4f}", f"{found.share:.1%}", p]
    speed = tower.speed
    return (
        tower.name,
        str(tower.num_layers),
        f"{tower.num_params:,}",
        f"{tower.num_params_in_layers:,}",
        *kept,
        f"{speed.p50_ms:.2f}",
        f"{speed.p99_ms:.2f}",
        f"{speed.queries_per_s:,.0f}",
    )
