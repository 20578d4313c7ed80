-- Grants and row-level security for the tables of v0002_tree.py: they are the system's alone. Frozen with it.

ALTER TABLE public.audit_tree ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.audit_tree FORCE ROW LEVEL SECURITY;
ALTER TABLE public.audit_tile ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.audit_tile FORCE ROW LEVEL SECURITY;
ALTER TABLE public.audit_run ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.audit_run FORCE ROW LEVEL SECURITY;
ALTER TABLE public.audit_sealed ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.audit_sealed FORCE ROW LEVEL SECURITY;
ALTER TABLE public.audit_note ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.audit_note FORCE ROW LEVEL SECURITY;

GRANT SELECT, INSERT, UPDATE ON public.audit_tree, public.audit_tile, public.audit_sealed TO keybearer_system;
GRANT SELECT, INSERT ON public.audit_run, public.audit_note TO keybearer_system;

-- Retention empties a record; what its row says of its place (writer_id, seq, d, h) stays beyond anybody's reach.
GRANT UPDATE (at, kind, action, user_id, owner_id, secret_id, request_id, outcome, nonce, line) ON public.audit_record
    TO keybearer_system;

CREATE POLICY system ON public.audit_tree TO keybearer_system USING (true);
CREATE POLICY system ON public.audit_tile TO keybearer_system USING (true);
CREATE POLICY system ON public.audit_run TO keybearer_system USING (true);
CREATE POLICY system ON public.audit_sealed TO keybearer_system USING (true);
CREATE POLICY system ON public.audit_note TO keybearer_system USING (true);
