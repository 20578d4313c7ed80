"""The vault: secrets go in once, and come out only to be borne to a provider.

Secret        a value with its owner, provider, type, name and rules; ``Secret`` is all of it but the value
Value         what is sealed; only this package and the gateway's credentials open one
Egress set    the origins a value may be sent to, bound into its envelope when it is stored
Version       one value in a secret's row of values; only the newest is in force, earlier ones can be put back for a while
Overlap       after a rotation, the time in which the version before serves where the provider refuses the new one
Trash         deleted secrets that can still be restored
Standing      what a secret is good for at a moment: active, expiring, failed …
Provider      a service that takes a key: predefined, the system's, a team's, or a person's own
Team          an owner that several people share; its members use what is its, its owners and admins change it
Reference     where a value is kept instead of here: in another store, read with the server's identity
Share         a person's secret lent to a team they are in, for use only or for management
Resolution    which secrets may serve a call, in which order, and where to stop
Credential    a secret resolved and opened for one call

``values``     what a value must look like (pure)     ``secrets``    secrets stored, listed, changed, deleted
``versions``   rotation, rolling back, pruning        ``trash``      restoring and purging
``keeper``     what all writers of secrets share      ``retention``  how long what is kept (values)
``oauth``      an OAuth token's other parts (pure)    ``standing``   what a secret is good for (pure)
``registry``   the providers that an owner can name   ``providers``  providers and models, made and changed
``rotate``     root and owner keys, exchanged online     ``erasure``   the end of an owner
``recovery``   a backup of the root keys
``resolve``    from a call to its credentials         ``views``      providers as one caller sees them (pure)
``sealed``     rows, sealing, opening                 ``drafts``     secrets as typed, checked (pure)
``teams``      teams and their members                ``shares``     secrets lent to teams
``references`` where a value is kept instead (pure)   ``external``   those values, fetched at use
``pointing``   references on their way in             ``stores``     the services that they point into
``refresh``    OAuth tokens, refreshed once           ``token_answer`` what an endpoint grants (pure)
``reach``      what somebody gets through teams       ``audience``   whom a change concerns
``disclosure`` to whom a value is handed out (pure)   ``remains``    what was removed and files may still hold
``models``     models, registered and changed         ``descriptions`` models as typed, checked (pure)
``addresses``  where a provider may be                 ``budgets``    who may limit what
``intake``     new secrets, many at once              ``adoption``   models' keys from before their rows said whose
``checks``     which keys are tested when             ``sealed_columns`` what is sealed, and under whose key
``reminders``  what people are told, and when         ``hooks``      where they are told by signed webhook
``holders``    which processes hold which root key    ``transfer``   import, export, backup, restore
"""
