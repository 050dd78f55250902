# The engine: one rule for each run of papermill_runs.yaml. `make figures` starts it for the runs that are due; directly:
#   snakemake --profile profiles/local --cores 2
#   snakemake --profile profiles/slurm --jobs 8 --config suite=full
# A run's hash stands in the name of its marker, so what changed has no marker yet and what did not is left alone; times don't matter.
import sys

from spatialprobes import due, runs

ROOT = Path(workflow.basedir)
PLAN = runs.load(ROOT)
STATUS = due.statuses(ROOT, PLAN)


def marker(name):
    return str(due.complete_marker(name, STATUS[name].hash, ROOT).relative_to(ROOT))


rule all:
    input:
        [marker(name) for name in runs.select(PLAN, config.get("suite", "lab"), config.get("only", ""))] if PLAN else [],


for run in PLAN.values():

    rule:
        name:
            run.name
        input:
            [ancient(marker(need)) for need in run.needs],
        output:
            marker(run.name),
        params:
            name=run.name,
            hash=STATUS[run.name].hash,
            python=sys.executable,
        threads: int(config.get("threads", 2))
        resources:
            mem_mb=int(run.resources.mem_gb * 1024),
            runtime=max(1, round(run.resources.minutes)),
            gpu=run.resources.gpu,
        shell:
            "{params.python:q} -m spatialprobes run {params.name:q} --expect {params.hash}"
