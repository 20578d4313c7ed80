-- Grants and row-level security for v0003_teams.py. Frozen with it.
--
-- A team is an owner whose rows its members see and its admins write. What somebody shares with a team is seen by its members too,
-- and where it is shared for management, changed by them. An invitation that was not accepted opens nothing but itself.

DO $$
DECLARE
    found text;
BEGIN
    FOREACH found IN ARRAY ARRAY['team', 'team_member', 'secret_share'] LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', found);
        EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', found);
    END LOOP;
END
$$;

-- The caller's teams. A policy cannot ask its own table, so a look-up function does: of the caller's own rows only.

GRANT SELECT ON public.team_member TO keybearer_lookup;
CREATE POLICY lookup ON public.team_member FOR SELECT TO keybearer_lookup USING (true);

CREATE FUNCTION public.keybearer_teams(rank text) RETURNS uuid[]
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT COALESCE(array_agg(m.team_id), '{}') FROM public.team_member m
    WHERE m.user_id = public.keybearer_caller()
        AND CASE rank
            WHEN 'invited' THEN true
            WHEN 'member' THEN m.accepted_at IS NOT NULL
            WHEN 'admin' THEN m.accepted_at IS NOT NULL AND m.role IN ('admin', 'owner')
            WHEN 'owner' THEN m.accepted_at IS NOT NULL AND m.role = 'owner'
            ELSE false
        END;
END;

-- Who is in the caller's teams, by name and address: an account's row has more than its fellows need.

CREATE FUNCTION public.keybearer_people() RETURNS TABLE (id uuid, email text, name text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT u.id, u.email, u.name FROM public.user_account u
    WHERE u.id IN (
        SELECT m.user_id FROM public.team_member m
        WHERE m.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])
    );
END;

DO $$
DECLARE
    found text;
BEGIN
    EXECUTE format('GRANT keybearer_lookup TO %I WITH INHERIT FALSE, SET TRUE', current_user);
    GRANT CREATE ON SCHEMA public TO keybearer_lookup;
    FOREACH found IN ARRAY ARRAY['keybearer_teams(text)', 'keybearer_people()'] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION public.%s FROM PUBLIC', found);
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.%s TO keybearer_app', found);
        EXECUTE format('ALTER FUNCTION public.%s OWNER TO keybearer_lookup', found);
    END LOOP;
    REVOKE CREATE ON SCHEMA public FROM keybearer_lookup;
    EXECUTE format('REVOKE keybearer_lookup FROM %I', current_user);
END
$$;

-- team: made by the system, with its first owner in it

GRANT SELECT, UPDATE ON public.team TO keybearer_app;
GRANT SELECT, INSERT ON public.team TO keybearer_system;
CREATE POLICY app_read ON public.team FOR SELECT TO keybearer_app
    USING (id = ANY ((SELECT public.keybearer_teams('invited'))::uuid[]));
CREATE POLICY app_update ON public.team FOR UPDATE TO keybearer_app
    USING (id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY system ON public.team TO keybearer_system USING (true);

-- team_member: admins bring in and send away, but touch no owner and make none; everybody may go

GRANT SELECT, INSERT, UPDATE, DELETE ON public.team_member TO keybearer_app;
GRANT SELECT, INSERT, UPDATE (priority, accepted_at, mac) ON public.team_member TO keybearer_system;
CREATE POLICY app_read ON public.team_member FOR SELECT TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller())
        OR team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY app_owner ON public.team_member TO keybearer_app
    USING (team_id = ANY ((SELECT public.keybearer_teams('owner'))::uuid[]));
CREATE POLICY app_insert ON public.team_member FOR INSERT TO keybearer_app
    WITH CHECK (role <> 'owner' AND team_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY app_update ON public.team_member FOR UPDATE TO keybearer_app
    USING (role <> 'owner' AND team_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY app_delete ON public.team_member FOR DELETE TO keybearer_app
    USING (role <> 'owner' AND team_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY app_leave ON public.team_member FOR DELETE TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY system ON public.team_member TO keybearer_system USING (true);

-- secret_share: made by whom the secret belongs to, for teams they are in; ended by them and by the team's admins

GRANT SELECT, INSERT, UPDATE, DELETE ON public.secret_share TO keybearer_app;
GRANT SELECT ON public.secret_share TO keybearer_system;
CREATE POLICY app_read ON public.secret_share FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY app_insert ON public.secret_share FOR INSERT TO keybearer_app
    WITH CHECK (owner_id = (SELECT public.keybearer_caller())
        AND team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY app_update ON public.secret_share FOR UPDATE TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        AND team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY app_delete ON public.secret_share FOR DELETE TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR team_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY system ON public.secret_share FOR SELECT TO keybearer_system USING (true);

-- owner, owner_key: a team's owners end it; its members open with its keys, its admins make the first of them

CREATE POLICY team_read ON public.owner FOR SELECT TO keybearer_app
    USING (id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY team_delete ON public.owner FOR DELETE TO keybearer_app
    USING (id = ANY ((SELECT public.keybearer_teams('owner'))::uuid[]));
CREATE POLICY team_read ON public.owner_key FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY team_insert ON public.owner_key FOR INSERT TO keybearer_app
    WITH CHECK (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY share_read ON public.owner_key FOR SELECT TO keybearer_app
    USING (owner_id IN (
        SELECT s.owner_id FROM public.secret_share s
        WHERE s.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])));

-- provider, model

CREATE POLICY team_read ON public.provider FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY team ON public.provider TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY team_read ON public.model FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY team ON public.model TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));

-- secret, secret_version

CREATE POLICY team_read ON public.secret FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY team ON public.secret TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY share_read ON public.secret FOR SELECT TO keybearer_app
    USING (id IN (
        SELECT s.secret_id FROM public.secret_share s
        WHERE s.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])));
CREATE POLICY share_update ON public.secret FOR UPDATE TO keybearer_app
    USING ((owner_id, id) IN (
        SELECT s.owner_id, s.secret_id FROM public.secret_share s
        WHERE s.grade = 'manage'
            AND s.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])));
CREATE POLICY share_delete ON public.secret FOR DELETE TO keybearer_app
    USING (id IN (
        SELECT s.secret_id FROM public.secret_share s
        WHERE s.grade = 'manage'
            AND s.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])));

CREATE POLICY team_read ON public.secret_version FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[]));
CREATE POLICY team ON public.secret_version TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY share_read ON public.secret_version FOR SELECT TO keybearer_app
    USING (secret_id IN (
        SELECT s.secret_id FROM public.secret_share s
        WHERE s.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])));
CREATE POLICY share_manage ON public.secret_version TO keybearer_app
    USING ((owner_id, secret_id) IN (
        SELECT s.owner_id, s.secret_id FROM public.secret_share s
        WHERE s.grade = 'manage'
            AND s.team_id = ANY ((SELECT public.keybearer_teams('member'))::uuid[])));

-- what was done with a team's keys, for those who lead it

CREATE POLICY team_read ON public.audit_record FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
CREATE POLICY team_read ON public.usage_record FOR SELECT TO keybearer_app
    USING (owner_id = ANY ((SELECT public.keybearer_teams('admin'))::uuid[]));
