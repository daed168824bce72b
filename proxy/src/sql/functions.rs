//! Which of PostgreSQL's own functions cannot write and give the same on every node, by their names alone.

/// Whether a function of `pg_catalog` is known to only read.
pub(super) fn is_read_only(name: &str) -> bool {
    READ_ONLY.split_ascii_whitespace().any(|known| known == name)
}

/// Whether a function of `pg_catalog` is known to leave nothing behind in the session that calls it, but
/// for what sequences remember.
pub(super) fn is_stateless(name: &str) -> bool {
    let session_lock = (name.contains("advisory") && !name.contains("xact")) || outlives_emptying(name);
    let prefixed = ["pg_", "lo_", "has_", "txid_", "inet_", "uuid"].iter().any(|p| name.starts_with(p));
    (prefixed && !session_lock) || STATELESS.split_ascii_whitespace().any(|known| known == name)
}

/// Whether a function of `pg_catalog` leaves something behind that even `DISCARD ALL` does not undo: a backup
/// that was begun, the origin that commits are marked with, a slot that goes with the session, the seed of
/// `random()`.
pub(super) fn outlives_emptying(name: &str) -> bool {
    let slot = name.ends_with("_replication_slot") && (name.contains("_create_") || name.contains("_copy_"));
    slot || name.starts_with("pg_replication_origin_session")
        || matches!(
            name,
            "pg_backup_start" | "pg_backup_stop" | "pg_start_backup" | "pg_stop_backup" | "setseed"
        )
}

/// Whether a word can stand in front of a parenthesis without being the name of a function.
pub(super) fn is_syntax(word: &str) -> bool {
    SYNTAX.split_ascii_whitespace().any(|known| known == word)
}

const SYNTAX: &str = "
    all analyze and any array as bit by case columns conflict copy explain cycle depth breadth first fetch group next only order partition passing path
    search xmlnamespaces xmltable cast char character check cube decimal default distinct dec do else elsif except
    exists filter float for foreign from grouping having if in int integer intersect interval into key lateral limit
    list loop materialized not notice null numeric offset on or over precision primary range return returns rollup row
    select sets setof smallint bigint some table then time timestamp timestamptz union unique using values varchar
    varying when where while with within
";

/// Whether what a function of `pg_catalog` tells may depend on which temporary objects there are.
pub(super) fn sees_temporary(name: &str) -> bool {
    ["pg_get_", "has_", "to_reg", "reg"].iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with("_is_visible")
        || matches!(name, "current_schema" | "current_schemas" | "format_type")
}

/// Functions that are no reads and whose effects, if any, are in the database alone.
const STATELESS: &str = "
    nextval setval currval lastval random random_normal gen_random_uuid gen_random_bytes clock_timestamp timeofday
    to_regclass to_regproc to_regprocedure to_regtype to_regrole to_regnamespace ts_rewrite
    amvalidate brin_desummarize_range brin_summarize_new_values brin_summarize_range currtid2 gin_clean_pending_list
    loread lowrite
";

/// Immutable and stable functions of `pg_catalog`, without those that tell servers apart
/// (`inet_server_addr`), look into files, or run SQL from a text (`query_to_xml`).
const READ_ONLY: &str = "
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or count every json_agg json_object_agg
    jsonb_agg jsonb_object_agg json_arrayagg json_objectagg max min range_agg range_intersect_agg string_agg sum
    xmlagg corr covar_pop covar_samp regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
    regr_sxy regr_syy stddev stddev_pop stddev_samp variance var_pop var_samp mode percentile_cont percentile_disc
    grouping
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value

    coalesce nullif greatest least

    abs cbrt ceil ceiling degrees div erf erfc exp factorial floor gcd lcm ln log log10 min_scale mod pi power pow
    radians round scale sign sqrt trim_scale trunc width_bucket acos acosd asin asind atan atand atan2 atan2d cos
    cosd cot cotd sin sind tan tand sinh cosh tanh asinh acosh atanh

    ascii bit_length btrim char_length character_length chr concat concat_ws convert convert_from convert_to decode
    encode format initcap left length lower lpad ltrim md5 normalize octet_length overlay parse_ident position
    quote_ident quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches
    regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right rpad rtrim
    split_part starts_with string_to_array string_to_table strpos substr substring to_ascii to_hex to_bin to_oct
    translate trim unistr upper casefold like notlike similar_escape textcat
    bit_count get_bit get_byte set_bit set_byte sha224 sha256 sha384 sha512 crc32 crc32c

    to_char to_date to_number to_timestamp
    age current_date current_time current_timestamp date_bin date_part date_trunc date_add date_subtract extract
    isfinite justify_days justify_hours justify_interval localtime localtimestamp make_date make_interval make_time
    make_timestamp make_timestamptz now statement_timestamp transaction_timestamp timezone overlaps date time
    timestamp timestamptz interval

    enum_first enum_last enum_range

    area center diagonal diameter height isclosed isopen npoints pclose popen radius slope width box bound_box circle
    line lseg path point polygon

    abbrev broadcast family host hostmask inet_merge inet_same_family masklen netmask network set_masklen text
    macaddr8_set7bit

    array_to_tsvector numnode plainto_tsquery phraseto_tsquery websearch_to_tsquery querytree setweight strip
    to_tsquery to_tsvector json_to_tsvector jsonb_to_tsvector ts_delete ts_filter ts_headline ts_rank ts_rank_cd
    tsquery_phrase tsvector_to_array get_current_ts_config

    uuid_extract_timestamp uuid_extract_version

    xmlcomment xmlconcat xmlelement xmlforest xmlpi xmlroot xml_is_well_formed xml_is_well_formed_document
    xml_is_well_formed_content xpath xpath_exists xmlexists xmltext xmlserialize xmlparse

    to_json to_jsonb array_to_json row_to_json json_build_array jsonb_build_array json_build_object
    jsonb_build_object json_object jsonb_object json_array json_array_elements jsonb_array_elements
    json_array_elements_text jsonb_array_elements_text json_array_length jsonb_array_length json_each jsonb_each
    json_each_text jsonb_each_text json_extract_path jsonb_extract_path json_extract_path_text
    jsonb_extract_path_text json_object_keys jsonb_object_keys json_populate_record jsonb_populate_record
    json_populate_recordset jsonb_populate_recordset json_to_record jsonb_to_record json_to_recordset
    jsonb_to_recordset jsonb_set jsonb_set_lax jsonb_insert json_strip_nulls jsonb_strip_nulls jsonb_path_exists
    jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_path_exists_tz
    jsonb_path_match_tz jsonb_path_query_tz jsonb_path_query_array_tz jsonb_path_query_first_tz jsonb_pretty
    json_typeof jsonb_typeof jsonb_concat jsonb_delete jsonb_contains json_exists json_query json_value json_scalar
    json_serialize json json_table

    array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_reverse array_sort array_to_string array_upper
    cardinality trim_array unnest array

    isempty lower_inc lower_inf upper_inc upper_inf range_merge multirange int4range int8range numrange tsrange
    tstzrange daterange int4multirange int8multirange nummultirange tsmultirange tstzmultirange datemultirange

    generate_series generate_subscripts

    current_catalog current_database current_query current_role current_schema current_schemas current_user
    session_user user version pg_typeof pg_size_pretty pg_size_bytes pg_client_encoding pg_column_size
    pg_char_to_encoding pg_encoding_to_char num_nonnulls num_nulls row
    int2 int4 int8 float4 float8 numeric bool varchar bpchar bytea

    format_type obj_description col_description shobj_description getdatabaseencoding row_security_active
    pg_get_constraintdef pg_get_expr pg_get_function_arg_default pg_get_function_arguments
    pg_get_function_identity_arguments pg_get_function_result pg_get_functiondef pg_get_indexdef
    pg_get_partition_constraintdef pg_get_partkeydef pg_get_ruledef pg_get_statisticsobjdef
    pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_get_triggerdef pg_get_userbyid
    pg_get_viewdef pg_index_column_has_property pg_index_has_property pg_indexam_has_property pg_options_to_table
    pg_partition_ancestors pg_partition_root pg_partition_tree
    pg_collation_is_visible pg_conversion_is_visible pg_function_is_visible pg_opclass_is_visible
    pg_operator_is_visible pg_opfamily_is_visible pg_statistics_obj_is_visible pg_table_is_visible
    pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible pg_ts_template_is_visible
    pg_type_is_visible
    has_any_column_privilege has_column_privilege has_database_privilege has_foreign_data_wrapper_privilege
    has_function_privilege has_language_privilege has_parameter_privilege has_schema_privilege
    has_sequence_privilege has_server_privilege has_table_privilege has_tablespace_privilege has_type_privilege
    pg_has_role pg_relation_is_publishable
    bit inet json jsonb macaddr macaddr8 money oid pg_lsn regclass regcollation regconfig regdictionary regnamespace
    regoper regoperator regproc regprocedure regrole regtype tid tsquery tsvector uuid varbit xid xid8 xml
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_function_that_writes_or_tells_servers_apart_is_listed() {
        for name in [
            "nextval",
            "setval",
            "currval",
            "lastval",
            "random",
            "gen_random_uuid",
            "clock_timestamp",
            "timeofday",
            "lo_create",
            "lo_get",
            "pg_notify",
            "pg_is_in_recovery",
            "pg_sleep",
            "txid_current",
            "pg_advisory_lock",
            "pg_backend_pid",
            "inet_server_addr",
            "query_to_xml",
            "table_to_xml",
            "dblink",
            "set_config",
            "setseed",
            "pg_current_wal_lsn",
            "pg_terminate_backend",
            "pg_read_file",
            "cursor_to_xml",
            "ts_stat",
            "ts_rewrite",
            "to_regclass",
        ] {
            assert!(!is_read_only(name), "{name}");
        }
        for name in ["now", "count", "coalesce", "lower", "jsonb_agg", "row_number", "generate_series"] {
            assert!(is_read_only(name), "{name}");
        }
    }
}
