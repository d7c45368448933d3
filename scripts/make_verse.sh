#!/bin/sh
# Makes the model `verse` again, from the collection chinese-poetry (a folder or an archive) to its measured poems:
#   scripts/make_verse.sh COLLECTION [FOLDER] [options of `pangu-lab train`]
# Everything goes into FOLDER (default: runs/verse-recipe); what is there already is not made twice, and an interrupted
# training goes on. An hour on two cores.
set -eu
if [ $# -eq 0 ]; then
    echo "usage: make verse FROM=COLLECTION: \`npm pack chinese-poetry\` gives an archive to name here, or" >&2
    echo "\`git clone https://github.com/chinese-poetry/chinese-poetry\` a folder with 全唐诗" >&2
    exit 2
fi
from=$1
to=${2:-runs/verse-recipe}
[ $# -lt 2 ] && shift 1 || shift 2
template='《{title}》
{text}'
mkdir -p "$to"
[ -d "$to/poems" ] || pangu-lab corpus verse --from "$from" --out "$to/poems"
[ -d "$to/tokenizer" ] || pangu-lab tokenizer train --kind char --vocab-size 6000 --input "$to/poems/train.jsonl" \
    --template "$template" --out "$to/tokenizer"
for side in train heldout; do
    [ -d "$to/$side" ] || pangu-lab prepare --input "$to/poems/$side.jsonl" --template "$template" \
        --tokenizer "$to/tokenizer" --seq-length 129 --whole-documents --out "$to/$side"
done
pangu-lab train --preset verse --data "$to/train" --eval-data "$to/heldout" --run "$to/run" "$@"
[ -d "$to/verse" ] || pangu-lab convert --from "$to/run" --dtype float16 --out "$to/verse" \
    --set preset=verse --set 'data.path=""' --set 'data.eval_path=""'
pangu-lab evaluate perplexity --from "$to/verse" --data "$to/heldout"
pangu-lab evaluate verse --from "$to/verse" --data "$to/poems/heldout.jsonl" --train "$to/poems/train.jsonl" --limit 1000
