#!/bin/sh
# Unpacks a QEMU of 9.0 or later, from Debian's bookworm-backports, beside the one that is installed,
# and prints the name of a command that runs it. Nothing is installed; no root is needed.
# FOLDER (default .qemu) keeps it: a second call downloads nothing.
set -eu
folder=${1:-.qemu}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
command=$folder/qemu-system-x86_64

if [ ! -x "$command" ]; then
    . /etc/os-release
    if [ "${VERSION_CODENAME:-}" != bookworm ]; then
        echo "no newer QEMU: bookworm-backports is for Debian 12, this is ${PRETTY_NAME:-another system}" >&2
        exit 1
    fi
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/debs" "$folder/root"
    # This machine's own mirror of Debian, another suite of it.
    sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true)
    mirror=$(echo "$sources" | grep -Eo 'https?://[^ ]+/debian/?( |$)' | head -1)
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} bookworm-backports main" \
        > "$folder/apt/sources.list"
    apt() { # Root's apt-get would drop its rights, and then could not write here.
        apt-get -q -o Dir::Etc::SourceList="$folder/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
            -o Dir::State::Lists="$folder/apt/lists" -o Dir::State::Status=/dev/null \
            -o Dir::Cache="$folder/apt" -o APT::Sandbox::User= -o APT::Update::Error-Mode=any \
            -o Acquire::http::Timeout=30 "$@" >&2
    }
    apt update
    (cd "$folder/debs" && apt download qemu-system-x86 qemu-system-common qemu-system-data seabios)
    for package in "$folder"/debs/*.deb; do
        dpkg -x "$package" "$folder/root"
    done
    usr=$folder/root/usr
    cat > "$command.new" <<END
#!/bin/sh
export QEMU_MODULE_DIR='$usr/lib/x86_64-linux-gnu/qemu'
exec '$usr/bin/qemu-system-x86_64' -L '$usr/share/qemu' -L '$usr/share/seabios' "\$@"
END
    chmod +x "$command.new"
    "$command.new" --version >&2 || {
        echo "the newer QEMU does not run here: are its libraries there? (apt-get install qemu-system-x86)" >&2
        exit 1
    }
    mv "$command.new" "$command"
    rm -r "$folder/apt" "$folder/debs"
fi
echo "$command"
