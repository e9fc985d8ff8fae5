"""An archive behind a real nginx that asks for a certificate: ours is sent, or a sentence told."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bench.server import free_port
from mrrag.data.dicomweb import Criteria, find_studies
from mrrag.data.dicomweb_request import RefusedError, archive_at
from mrrag.errors import ArchiveError, SettingsError

SECONDS = 30
# A certificate authority, and of it a server and a client; "other" is of nobody.
CERTIFICATES = """
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
openssl req -x509 $key -days 2 -keyout ca.key -out ca.pem -subj "/CN=Test authority"
echo subjectAltName=IP:127.0.0.1 > names
for name in server client; do
    openssl req -new $key -keyout $name.key -out $name.csr -subj /CN=$name
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -set_serial 1 -days 2 \\
        -extfile names -out $name.crt
    cat $name.key $name.crt > $name.pem
done
openssl req -x509 $key -days 2 -keyout other.pem -out other.crt -subj /CN=other
cat other.crt >> other.pem
openssl ec -in client.key -aes128 -passout pass:secret | cat - client.crt > encrypted.pem
"""
CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/unused;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.crt;
        ssl_certificate_key {folder}/server.key;
        ssl_client_certificate {folder}/ca.pem;
        ssl_verify_client on;
        location /dicom-web/ {{ default_type application/dicom+json; return 200 '[]'; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the certificates."""
    if not shutil.which("openssl"):
        pytest.skip("openssl was not found.")
    folder = tmp_path_factory.mktemp("nginx")
    subprocess.run(["bash", "-ec", CERTIFICATES], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if not nginx:
        pytest.skip("nginx was not found (in Debian: apt-get install nginx-light).")
    port = free_port()
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port))
    process = subprocess.Popen([nginx, "-e", folder / "errors", "-c", folder / "nginx.conf"])
    try:
        until = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "errors").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
        yield f"https://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(SECONDS)


def search(address: str, folder: Path, ca: str, certificate: str) -> int:
    """Return how many studies are found with these files."""
    names = {"MRRAG_DICOMWEB_CA": ca, "MRRAG_DICOMWEB_CERT": certificate}
    environment = {name: str(folder / file) for name, file in names.items() if file}
    return len(find_studies(archive_at(address, environment), Criteria(patient="1"))[0])


def test_an_archive_that_asks_for_a_certificate_gets_ours(address: str, folder: Path) -> None:
    assert search(address, folder, "ca.pem", "client.pem") == 0


@pytest.mark.parametrize("certificate", ["", "other.pem"])
def test_without_one_that_it_trusts_the_sentence_names_the_setting(
    address: str, folder: Path, certificate: str
) -> None:
    with pytest.raises(RefusedError, match="asks for a certificate, set MRRAG_DICOMWEB_CERT"):
        search(address, folder, "ca.pem", certificate)


def test_an_archive_that_we_do_not_trust_gets_nothing(address: str, folder: Path) -> None:
    with pytest.raises(ArchiveError, match="certificate is not trusted"):
        search(address, folder, "other.crt", "client.pem")


@pytest.mark.parametrize(
    ("ca", "certificate", "sentence"),
    [
        ("ca.pem", "encrypted.pem", "MRRAG_DICOMWEB_CERT .* the key is encrypted"),
        ("ca.pem", "client.crt", "MRRAG_DICOMWEB_CERT .* does not hold"),
        ("ca.key", "client.pem", "MRRAG_DICOMWEB_CA .* no certificate"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_before_anything_is_asked(
    folder: Path, ca: str, certificate: str, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        search("https://127.0.0.1:9/dicom-web", folder, ca, certificate)
