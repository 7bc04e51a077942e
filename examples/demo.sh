#!/usr/bin/env bash
# From rasters to a scored and exported encoder on this machine, in minutes; run by "make demo".
# DATA is a BigEarthNet root, v1 or v2, of which 1600 patches are used; without it patches are
# simulated, and a pair is one place on two dates. SEED is the training seed. Each command is
# printed before it runs. A rerun resumes.
set -euo pipefail

patches=${PATCHES:-1600}
batch=64
ranks=2
fewest_to_score=60 # with fewer, no split into train, validation and test is informative

# Quote a path so that hydra reads it as text, whatever characters it contains.
quoted() { printf '"%s"' "$(printf '%s' "$1" | sed -E 's/(\\+)("|$)/\1\1\2/g; s/"/\\"/g')"; }

run() {
    printf '\n$'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

pairs=() dates=1 # dates per place
data=${DATA:-}
data=${data/#\~/$HOME}
if [ -z "$data" ]; then
    source=simulated size=source.num_patches data=demo/simulated/rasters
    # Two dates of a place differ in light, haze and cover, but share the arrangement of its fields:
    # views that differ as much in light leave nothing else to match.
    dates=2
    pairs=(data.positives=season +augment.strengths.gain=1.25
        +augment.strengths.brightness=0.4 +augment.strengths.contrast=0.4)
elif [ -e "$data/metadata.parquet" ] || [ -d "$data/BigEarthNet-S2" ]; then
    source=bigearthnet_v2 size=limit
elif [ -d "$data/BigEarthNet-v1.0" ] || compgen -G "$data/S2?_MSIL2A_*/*_B02.tif" >/dev/null; then
    source=bigearthnet_v1 size=limit
else
    echo "demo: DATA is $data, which holds neither BigEarthNet-v1.0 nor BigEarthNet-S2 with" \
        "metadata.parquet; give their folder, or leave DATA out for simulated patches" >&2
    exit 2
fi
shards=demo/$source/shards run_dir=demo/$source/run export=demo/$source/export

run simclr-pack source=$source source.root="$(quoted "$data")" output=$shards \
    $size="$patches" shard_size_mib=16 cluster=laptop
run simclr-verify shards=$shards

read -r rows training < <(
    python - $shards <<'PY'
import sys
from pathlib import Path

from preprocess.shards import open_readers, read_manifest

folder = Path(sys.argv[1])
readers = open_readers(folder, read_manifest(folder))
splits = [split for reader in readers for split in reader.index("split")]
print(len(splits), sum(split in ("train", "") for split in splits))
PY
)
few=()
if [ $((training / dates)) -lt $batch ]; then # too few for a batch: train on all patches
    few=('data.splits=[train,validation,test,""]')
    [ $((rows / dates)) -ge $batch ] || batch=$((rows / dates / ranks * ranks))
fi
run simclr-pretrain recipe=laptop "shards=[$shards]" run_dir=$run_dir seed="${SEED:-0}" \
    "${pairs[@]}" data.global_batch_size=$batch "${few[@]}" cluster=laptop cluster.tasks_per_node=$ranks
if [ "$rows" -ge $fewest_to_score ]; then
    run simclr-evaluate run=$run_dir shards=$shards task=bigearthnet19 'seeds=[0]'
fi
run simclr-export run=$run_dir output=$export

echo
if [ $source = simulated ]; then
    echo "simulated patches: the scores show that it works, nothing about Sentinel-2"
fi
printf 'shards    %s\nrun       %s\nencoder   %s\n%s s\n' $shards $run_dir $export "$SECONDS"
python - $run_dir $ranks <<'PY'
import sys
from pathlib import Path

from simclr.evaluation.report import read_report, verdict
from simclr.monitoring.metrics import read_metrics

run_dir = Path(sys.argv[1])
first, *_, last = read_metrics(run_dir / "metrics.jsonl")
print(
    f"contrastive loss {first['loss']:.3f} -> {last['loss']:.3f} in {last['step']} steps on "
    f"{sys.argv[2]} ranks; chance is {last['chance_level']:.3f}"
)
report = run_dir / "evaluation.json"
if report.exists():
    print(verdict(read_report(report)[0]))
else:
    print("No verdict: too few patches to score an encoder.")
PY
