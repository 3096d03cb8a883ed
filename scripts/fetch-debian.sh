#!/usr/bin/env bash
# Fetches a package from this machine's own Debian mirror and unpacks it into the cache folder, without installing it: what
# packages of servers would start when they are installed stays off. Prints the folder.
#
#   scripts/fetch-debian.sh PACKAGE FILE-IN-IT [SUITE]     without a suite: the machine's own
set -euo pipefail

package=$1 file=$2 suite=${3:-}
folder=${CENTRA_CACHE:-$HOME/.cache/centra}/debian/$package${suite:+-$suite}
if [ -e "$folder/$file" ]; then echo "$folder" && exit; fi

mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE) $(CODENAME)' 'Created-By: Packages' | awk '$1 == "Debian" && !/security|updates|backports/ { print; exit }')
read -r _ uri _ codename <<< "$mirror"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
if [ -z "${uri:-}" ] || [ ! -r "$keys" ]; then echo "$package cannot be fetched: no Debian mirror is known here" >&2 && exit 1; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/parts
echo "deb [signed-by=$keys] $uri ${suite:-$codename} main" > "$work/sources.list"
options=(-qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/parts"
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
cd "$work"
apt-get "${options[@]}" update >&2
apt-get "${options[@]}" download "$package" >&2
mkdir -p "$folder"
dpkg -x "$package"_*.deb "$folder"
[ -e "$folder/$file" ]
echo "$folder"
