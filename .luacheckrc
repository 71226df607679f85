-- Redis loads each script of pdc/storage/lua with the texts of numbers.lua and common.lua before it.
std = "lua51"
max_line_length = 128
globals = {"ARGV"}
read_globals = {
  "KEYS", "cjson", "redis", "struct",
  "CHUNK", "add", "clock", "format", "is_complete", "is_forgotten", "is_idle", "names_fields", "note_new_fields", "parse_mark",
  "remove", "series_of", "stem_of", "text", "with_stem",
}
files["**/common.lua"].ignore = {"211"}  -- others use its functions
files["**/numbers.lua"].ignore = {"211"}
