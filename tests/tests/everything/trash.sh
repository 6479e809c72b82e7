# What the META mount at $META can ask of a master, after files.sh with the same $TAG.
set -e
cd "$META/trash"
deleted() { find . -path ./undel -prune -o -type f -name "*|$1" -print | head -1; }
printf "else/where/$TAG" > "$(deleted t3)"; mv "$(deleted $TAG)" undel/; mv "$(deleted t4)" undel/; rm "$(deleted t5)"
