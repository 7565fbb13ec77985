#!/usr/bin/env bash
# Certificates for tests, all short-lived. usage: make_certificates.sh FOLDER
# NAME.pem and NAME.key: server, client, expired and elsewhere (of another host) come from ca, stranger from other_ca.
# locked.key is that of server with a passphrase.
set -euo pipefail
cd "$1"

authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$1.key" -out "$1.pem" -days 2 -subj "/CN=$1"
}

signed() {  # NAME AUTHORITY DAYS HOSTS
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
  openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -days "$3" -out "$1.pem" \
    -extfile <(echo "subjectAltName=$4")
}

authority ca
authority other_ca
here=DNS:localhost,IP:127.0.0.1
signed server ca 2 $here
signed client ca 2 $here
signed stranger other_ca 2 $here
signed expired ca -1 $here
signed elsewhere ca 2 DNS:elsewhere.example
openssl pkey -in server.key -aes256 -passout pass:secret -out locked.key
