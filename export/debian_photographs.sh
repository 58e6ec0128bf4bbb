#!/usr/bin/env bash
# Fetches freely licensed photographs, wallpapers and stamps, from Debian's packages, to pre-train on; installs nothing.
#
#     export/debian_photographs.sh build/photographs && sctrt pretrain build/photographs/unpacked -o build/pretrained
#
# docs/photographs.md says what is in them, under which licences. It needs apt-get, dpkg, and a list of packages that
# `apt-get update` has made.
set -euo pipefail
folder=${1:?expected a folder: export/debian_photographs.sh FOLDER}
packages=(gnome-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 lxqt-themes mate-backgrounds
  plasma-workspace-wallpapers tuxpaint-stamps-default ukui-wallpapers)

mkdir -p "$folder/deb" "$folder/unpacked"
(cd "$folder/deb" && apt-get download "${packages[@]}")
for deb in "$folder"/deb/*.deb; do
  name=$(dpkg-deb --field "$deb" Package)
  rm -rf "$folder/unpacked/$name"
  dpkg -x "$deb" "$folder/unpacked/$name"
done

# Plasma's wallpapers lie there in many sizes, WIDTHxHEIGHT, cut to different shapes: the largest is kept, so that no
# photograph is both trained and validated on.
find "$folder/unpacked" -type f -name 'screenshot.*' -delete
find "$folder/unpacked" -type d -path '*/contents/images*' | while read -r sizes; do
  find "$sizes" -type f -regextype posix-extended -regex '.*/[0-9]+x[0-9]+\.[a-z]+' -printf '%f\n' |
    awk -Fx '{ print $1 * $2, $0 }' | sort -rn | tail -n +2 | cut -d' ' -f2- |
    while read -r smaller; do rm "$sizes/$smaller"; done
done
