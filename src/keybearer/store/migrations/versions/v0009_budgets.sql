-- Grants and row-level security for v0009_budgets.py. Frozen with it.
--
-- A limit is seen by whom it concerns, and changed by them only where no administrator set it.

ALTER TABLE public.budget ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.budget FORCE ROW LEVEL SECURITY;
ALTER TABLE public.reservation ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.reservation FORCE ROW LEVEL SECURITY;

GRANT SELECT, INSERT, UPDATE, DELETE ON public.budget TO keybearer_app;
GRANT SELECT ON public.budget TO keybearer_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.reservation TO keybearer_system;

CREATE POLICY app_read ON public.budget FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR owner_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY app ON public.budget TO keybearer_app
    USING (NOT by_admin AND (owner_id = (SELECT public.keybearer_caller())
        OR owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[])));
CREATE POLICY admin ON public.budget TO keybearer_app
    USING ((SELECT public.keybearer_is_admin()));
CREATE POLICY system ON public.budget FOR SELECT TO keybearer_system USING (true);
CREATE POLICY system ON public.reservation TO keybearer_system USING (true);
