"""Rules of our own for the jumpserver: name this file under [Hooks] in jumpserver.toml, and change it as you need."""

from hooks import Denied, Hooks, TokenAuthData


class OurHooks(Hooks):
    """Called on the sessions' threads, several at a time; docs/integrate.md names all hooks."""

    def validate_ssh_token(self, token: str) -> TokenAuthData:
        """What the token stands for. Denied refuses the user with its text."""
        auth = super().validate_ssh_token(token)  # by [Token] secret or [Platform] validate_url
        if auth.namespace == "kube-system":
            raise Denied("nobody opens terminals in kube-system")
        return auth
