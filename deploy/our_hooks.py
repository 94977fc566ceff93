"""Rules of our own for the jumpserver: name this file under [Hooks] in jumpserver.toml, and change what you need."""

from hooks import Denied, Hooks, SessionInfo, TokenAuthData


class OurHooks(Hooks):
    """Called on the sessions' threads, several at a time. What is not overridden is as it ships."""

    def validate_ssh_token(self, token: str) -> TokenAuthData:
        """What the token stands for. Denied refuses the user with its text."""
        auth = super().validate_ssh_token(token)  # by [Token] secret or [Platform] validate_url
        if auth.namespace == "kube-system":
            raise Denied("nobody opens terminals in kube-system")
        return auth

    def on_login(self, info: SessionInfo) -> None:
        """A session begins; an exception refuses it."""
        super().on_login(info)

    def on_logout(self, info: SessionInfo) -> None:
        """A session has ended; called again until it returns."""
        super().on_logout(info)

    def authorize(self, token: str, action: str, filename: str) -> str:
        """Who asks to replay a recording. Denied refuses."""
        return super().authorize(token, action, filename)
