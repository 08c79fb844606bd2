"""A file system of fsspec that a password opens; importing this registers it."""

import urllib.parse

import fsspec
from fsspec.implementations.local import LocalFileSystem

SECRET = "tWq8zPk3Lm/7[x%@Vb9nRt2Ys"


class Vault(LocalFileSystem):
    """Local files, for who gives the password: `vault://user:PASSWORD@/folder`."""

    protocol = "vault"

    @classmethod
    def _strip_protocol(cls, path):
        user, at, path = str(path).removeprefix("vault://").rpartition("@")
        password = urllib.parse.unquote(user.partition(":")[2])
        if at and password != SECRET:
            raise PermissionError(f"wrong password {password} in vault://{user}@{path}")
        if "missing" in path:
            raise RuntimeError(f"a bug of the library at vault://{user}@{path}")
        return LocalFileSystem._strip_protocol(path)


fsspec.register_implementation("vault", Vault, clobber=True)
