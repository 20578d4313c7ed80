"""Access: who calls, and what they may do.

Caller          who asks, after authentication: a signed-in person, an access token, or the operator
Account         a person who signs in here; the first one is made with the set-up link
Session         a signed-in browser: a random cookie of which only the hash is stored
Access token    ``kb_…``: what applications call with; only its hash is stored
Grant           a verified access token as the gateway keeps it for a moment
Scope           one thing a token may do; people have all that their role has
Row MAC         proof that a row was written by this program, not into its database

``policy``     scopes, addresses, who may what      ``passwords``  Argon2id, and what a password must be
``tokens``     access tokens                         ``sessions``   sign-in, sessions
``users``      accounts and the set-up link          ``limiter``    sign-in attempts per account and address
``fields``     what people type, checked             ``attempts``   refused attempts, recorded
``macs``       what row MACs cover                   ``pace``       how often one may do what harms by the hundred
``freeze``     the emergency stop
"""
